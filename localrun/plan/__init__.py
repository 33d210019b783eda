"""Does no I/O and imports no backend: ModelSpec + Machine + PlanRequest → Plan."""
