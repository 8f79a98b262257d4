"""Stage `alignment_grpo` of study grpo: the assistant after GRPO on the three H (studies/aligned.py)."""

from studies.aligned import align

if __name__ == "__main__":
    align("grpo", "grpo")
