from typing import Any

def __getattr__(name: str) -> Any: ...

Applied: Any
Change: Any
Clipping: Any
Function: Any
Gradients: Any
Group: Any
Move: Any
Plan: Any
Tensor: Any
Trail: Any
