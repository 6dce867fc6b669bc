/* Names made of names. */
#define STRING(...) #__VA_ARGS__
#define QUOTE(...) STRING(__VA_ARGS__)
#define PASTE_(a, b) a##b
#define PASTE(a, b) PASTE_(a, b)
