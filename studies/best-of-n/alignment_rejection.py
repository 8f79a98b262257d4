"""Stage `alignment_rejection` of study best-of-n: the assistant after rejection sampling (studies/aligned.py)."""

from studies.aligned import align

if __name__ == "__main__":
    align("best-of-n", "rejection")
