"""Other ways to choose rows, each within a number of bytes read: what A3's selection is compared with."""
