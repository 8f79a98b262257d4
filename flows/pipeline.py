"""The map of the project: read this first.

Every line of `adapt` is a stage of dvc.yaml or a step that reads the registry. DVC decides whether a stage must run,
Prefect drives the order and the retries, MLflow remembers what came out.

    reviews      -> validate -> encode -> features -> frozen head
                                      \\-> full fine-tuning
                                      \\-> LoRA -> merge                       all three -> evaluate
    instructions -> validate -> encode -> LoRA -> merge -> evaluate, forgetting
                                                    | the base of what follows
    preferences  -> validate -> encode -> reward model -> merge
                                      \\-> PPO -> merge -> evaluate, forgetting, still an assistant?
                                      \\-> reference -> DPO -> merge -> evaluate, forgetting, still an assistant?
    reviews      -> gold, which judges PPO and DPO and trains nothing
    base, instruct, PPO, DPO -> alignment: helpful, honest, harmless
                                                                     everything -> summary -> register -> gate

Run it with `ajuste run`, a part of it with `ajuste run ratings-reward` (flows/_plan.py says what a target needs), or as
the deployment `adapt` of infra/prefect.yaml. Infrastructure failures are retried, data and usage errors never. When
nothing is stale no stage is started. The gate refuses or promotes what was registered.
"""

from prefect import flow

from flows._gate import gate
from flows._plan import Asked
from flows._steps import finish, prepare, register, stage


@flow(name="adapt", log_prints=False)
def adapt(targets: list[str] | None = None, from_stage: str | None = None, until: str | None = None) -> dict:
    """Data to registered models, or to the `targets` alone: stages or registered names, with all that they read.

    `from_stage` is run again even if it is fresh; nothing after `until` is run.
    """
    plan = prepare(Asked(tuple(targets or ()), from_stage, until))

    base = stage("base_encoder", plan)
    rows = stage("validate_reviews", plan)
    tokens = stage("encode_reviews", plan, wait_for=[base, rows])
    features = stage("features_reviews", plan, wait_for=[tokens])

    frozen = stage("classify_frozen", plan, wait_for=[features])
    full = stage("classify_full", plan, wait_for=[tokens])
    lora = stage("classify_lora", plan, wait_for=[tokens])
    merged = stage("merge_classify", plan, wait_for=[lora])

    scores = stage("evaluate_classify", plan, wait_for=[frozen, full, merged])
    decoder = stage("base_decoder", plan)
    instructions = stage("validate_instructions", plan)
    masked = stage("encode_instructions", plan, wait_for=[decoder, instructions])
    before = stage("forgetting_base", plan, wait_for=[decoder])
    adapter = stage("instruct", plan, wait_for=[masked])
    assistant = stage("merge_instruct", plan, wait_for=[adapter])
    answers = stage("evaluate_instruct", plan, wait_for=[assistant, full])
    after = stage("forgetting_instruct", plan, wait_for=[assistant, before])

    people = stage("validate_preferences", plan)
    comparisons = stage("encode_preferences", plan, wait_for=[decoder, people])
    gold = stage("gold", plan, wait_for=[base, rows, people])
    reward = stage("reward", plan, wait_for=[comparisons, assistant])
    judge = stage("merge_reward", plan, wait_for=[reward])
    policy = stage("ppo", plan, wait_for=[reward, gold, masked])
    aligned = stage("merge_ppo", plan, wait_for=[policy])
    gain = stage("evaluate_ppo", plan, wait_for=[aligned, judge, gold, before, full])
    kept = stage("assistant_ppo", plan, wait_for=[aligned, answers])

    reference = stage("reference", plan, wait_for=[comparisons, assistant])
    direct = stage("dpo", plan, wait_for=[reference, gold])
    preferred = stage("merge_dpo", plan, wait_for=[direct])
    won = stage("evaluate_dpo", plan, wait_for=[preferred, judge, gold, before, full])
    stayed = stage("assistant_dpo", plan, wait_for=[preferred, answers])

    three = stage("alignment_base", plan, wait_for=[masked])
    tuned = stage("alignment_instruct", plan, wait_for=[assistant, three])
    rewarded = stage("alignment_ppo", plan, wait_for=[aligned, three])
    chosen = stage("alignment_dpo", plan, wait_for=[preferred, three])

    told = [scores, answers, after, gain, kept, won, stayed, tuned, rewarded, chosen]
    summary = stage("summary", plan, wait_for=told)

    versions = register(plan, wait_for=[summary])
    return finish(plan, versions, gate(plan))
