// Functions without a body are declared in enter.go; this file lets the compiler accept them.
