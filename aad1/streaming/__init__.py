"""Streaming: an image and a prompt in, frames out, chunk by chunk, for as long as anyone looks."""

from aad1.streaming.accounting import Account, ChunkTime
from aad1.streaming.noise import StreamNoise
from aad1.streaming.record import Recording, enlargement, frame_count, record
from aad1.streaming.session import Session, Student, check_passes, picture_size
from aad1.streaming.student import DTYPES, STUDENT, load_student, load_teacher, student_folder

__all__ = [
    "DTYPES",
    "STUDENT",
    "Account",
    "ChunkTime",
    "Recording",
    "Session",
    "StreamNoise",
    "Student",
    "check_passes",
    "enlargement",
    "frame_count",
    "load_student",
    "load_teacher",
    "picture_size",
    "record",
    "student_folder",
]
