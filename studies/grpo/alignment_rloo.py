"""Stage `alignment_rloo` of study grpo: the assistant after RLOO on the three H (studies/aligned.py)."""

from studies.aligned import align

if __name__ == "__main__":
    align("grpo", "rloo")
