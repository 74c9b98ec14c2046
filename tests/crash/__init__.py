"""Writers that are killed, and the proof that what they acknowledged stays."""
