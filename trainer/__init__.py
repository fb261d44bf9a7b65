"""From pairs of sounds and sentences to an encoder bundle: ``audiofuse-train``."""
