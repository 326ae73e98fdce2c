"""A controlled study: which methods look at a digit, and which at the digit that it usually comes with?"""
