"""Pictures and pages about runs and results."""
