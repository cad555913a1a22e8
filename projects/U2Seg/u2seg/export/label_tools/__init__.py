"""Label files of other tools: one module a tool, each writes and, where people correct labels in the tool, reads."""
