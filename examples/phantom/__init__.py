"""A controlled archive: synthetic, radiograph-like DICOM images whose findings and boxes are known."""
