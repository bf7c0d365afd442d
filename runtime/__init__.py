"""callboard.runtime"""
