"""The studio: a page that shows runs, replays their steps and controls training, and its server. Needs no torch."""
