"""callboard.store"""
