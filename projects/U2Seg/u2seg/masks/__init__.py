"""Class-agnostic masks: MaskCut and its relatives, their refinement, and the stage that runs them over a data set."""
