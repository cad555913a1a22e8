"""Meta-architectures and heads, registered with Detectron2 by importing this package."""
