"""From pairs of sounds and sentences to an encoder bundle; the trainer is not written yet."""
