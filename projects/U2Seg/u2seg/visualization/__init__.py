"""Pictures: fixed colours per cluster, drawn labels and predictions, the report page."""
