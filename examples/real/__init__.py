"""Real DICOM files and photographs from installed packages, audited with real ImageNet weights."""
