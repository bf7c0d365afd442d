"""callboard.actors"""
