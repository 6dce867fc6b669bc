from typing import Any

def __getattr__(name: str) -> Any: ...

Change: Any
Clipping: Any
Function: Any
Gradients: Any
Group: Any
Move: Any
Plan: Any
Tensor: Any
