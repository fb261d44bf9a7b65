"""What a worker and a decoding process say to each other, in lines of JSON over a socket.

    worker ── {"open": id, "path": str, "max_duration_s": float} ──> {"sample_rate", "channels"}
           ── {"next": id} ──> {"samples": n} | {"samples": n, "duration_s"} | {"duration_s"}
           ── {"close": id} ──> nothing

Each line but ``close`` gets one answer; before the first comes ``{"ready": true}``: what ends
before that is no sound's fault. A process may have many sounds open, and works on one
window at a time, so that a long sound never keeps a short one waiting for more than a window.
The window itself lies in memory that both processes map: ``n`` float32 samples, mono at 32 kHz. The
answer with ``duration_s`` is a sound's last. Instead of any answer there may be ``{"rejected":
reason, "detail"}``, the sound's own fault, or ``{"bug": text}``; then too the sound is closed.
"""

from audiofuse.core.audio.recording import WINDOW_SAMPLES

WINDOW_BYTES = WINDOW_SAMPLES * 4  # float32
