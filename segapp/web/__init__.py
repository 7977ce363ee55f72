"""The web app: drop scans, look at their segmentations, measure, download."""
