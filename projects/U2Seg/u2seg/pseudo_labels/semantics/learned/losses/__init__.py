"""The losses of STEGO and CAUSE: pure functions of features, codes and codewords."""
