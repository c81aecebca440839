"""What we are compared with. Each module is one side of a comparison and runs in a process of its own."""
