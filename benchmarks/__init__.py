"""The benchmark suite of diffgen; see README.md beside this file."""
