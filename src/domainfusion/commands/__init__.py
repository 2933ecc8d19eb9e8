"""The commands behind the command line, one function each; torch is imported only where a command computes."""
