"""What is measured: pure functions of tensors and arrays."""
