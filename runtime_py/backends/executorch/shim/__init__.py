"""The C interface over ExecuTorch's torch-free libraries: its source, and how it is built."""
