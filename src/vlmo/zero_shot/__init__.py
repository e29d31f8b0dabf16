"""Measurements without training: class names as texts, and true against false captions."""

from vlmo.zero_shot.benchmark import BenchmarkResult as BenchmarkResult
from vlmo.zero_shot.benchmark import run_suite as run_suite
from vlmo.zero_shot.classification import DEFAULT_TEMPLATES as DEFAULT_TEMPLATES
from vlmo.zero_shot.classification import build_classifier as build_classifier
from vlmo.zero_shot.classification import evaluate_zero_shot as evaluate_zero_shot
from vlmo.zero_shot.classification import read_lines as read_lines
from vlmo.zero_shot.suites import SUITES as SUITES
