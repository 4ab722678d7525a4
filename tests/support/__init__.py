"""What tests of every kind share. Part of no image, and imported by no production code."""
