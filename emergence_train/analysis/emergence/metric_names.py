"""What the name of a metric says, by its whole words: "letter_acc" has no "ter", "rougeL" is rouge.

Of several words the last decides, as the noun of a compound does: "error_detection_acc" is an accuracy, "accuracy_loss" a loss.
What follows "per", "at" or "vs" is no noun of it, nor is a method: "acc_at_loss" and "acc_logit_lens" are accuracies.
"neg_mse" and "non_toxicity" are the better the higher. The directions are those of lm-eval, HELM, OLMES and sacrebleu.
"""

import re

# Shares of right items, whose noise is binomial
RIGHT = "acc accuracy accuracies exact match matches em pass passed"
# Other scores between 0 and 1; digits part words, so that f1 is "f" and mc2 "mc"
SCORES = (
    "f mc precision recall auc auroc auprc rouge bleu chrf meteor anls iou ndcg mrr reciprocal_rank win "
    "winrate wins detection correction free similarity"
)
PROBABILITIES = "probs? probability probabilities"  # between 0 and 1 too
UNITS = "rate pct percent percentage share fraction"  # between 0 and 1 too, in either direction
# Shares of wrong items
WRONG = "error errors err failure failures hallucination hallucinations toxicity stereotype"
# Words of a share only where no noun is: "prob_correct" is a probability, "loss_len_norm" a loss
RIGHTLY, WRONGLY = "correct len_norm pmi_dc", "incorrect wrong invalid"
# Losses: continuous, without a highest value; likelihood_diff is how far the likelihoods of a pair are apart, of CrowS-Pairs
LOSSES = (
    "loss losses logloss nll ce xent cross_entropy crossentropy crossentropyloss surprisal kl kld divergence ppls? perplexity "
    "perplexities bits nats bpb bpc bpt bpw neg(?:ative)?_log_?(?:likelihood|lik|probs?) likelihood_diff(?:erence)?"
)
# Lower is better, and 1 is not the highest: insertions count in word error rates, Brier scores are sums over options
DISTANCES = "wer cer ter mer brier rmse mse mae mape crps ece mce calibration_error distance regret rank"
HIGHER = "correlation reduction"
# Functions of the probabilities without a highest value; the higher the better, or neither
UNBOUNDED = "likelihoods? logliks? loglikelihoods? logprobs? logits? margin entropy soft"
SMOOTH = "brier crps distance"  # of DISTANCES those that move with every change of the probabilities
BESIDE = re.compile(r"(?<![a-z])(?:per|at|vs|logit_lens)(?![a-z])")
MC2 = re.compile(r"(?<![a-z\d])mc_?2(?![a-z\d])")  # the probability of all true answers; mc1 is an accuracy
STEP = re.compile(r"step_\d+$")  # metrics of a task's steps, each scored by itself
NEGATED = re.compile(r"(?<![a-z])(?:neg_|(?:negative|non)_$)")  # before the noun, as in sklearn's neg_log_loss
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def _of(*words: str) -> re.Pattern:
    """A whole word of these, in words joined by underscores; the longest first, as "cross_entropy" is one."""
    names = sorted(" ".join(words).split(), key=len, reverse=True)
    return re.compile(rf"(?<![a-z])(?:{'|'.join(names)})(?![a-z])")


_NOUN, _ADVERB = _of(RIGHT, SCORES, PROBABILITIES, WRONG, LOSSES, DISTANCES, HIGHER, UNBOUNDED), _of(RIGHTLY, WRONGLY)
_RIGHT, _BOUNDED, _UNIT = _of(RIGHT, RIGHTLY), _of(RIGHT, RIGHTLY, SCORES, PROBABILITIES, WRONG, WRONGLY), _of(UNITS)
_OPEN, _LOWER = _of(LOSSES, DISTANCES), _of(WRONG, WRONGLY, LOSSES, DISTANCES)

_CONTINUOUS = _of(PROBABILITIES, LOSSES, SMOOTH, UNBOUNDED)


def _words(metric: str) -> str:
    return "_".join(WORD.findall(metric)).lower()


def _nouns(metric: str) -> tuple[str, list[re.Match]]:
    """-> (the part of its words before or after "per" that has known ones, the first if several do; these words)."""
    parts = BESIDE.split(_words(metric))
    matches = ((part, list(words.finditer(part))) for words in (_NOUN, _ADVERB) for part in parts)
    return next(((part, known) for part, known in matches if known), ("", []))


def _noun(metric: str) -> str:
    """The last of its words that is known; "" where none is."""
    nouns = _nouns(metric)[1]
    return nouns[-1][0] if nouns else ""


def lower_is_better(metric: str) -> bool:
    words, nouns = _nouns(metric)
    return _LOWER.fullmatch(_noun(metric)) is not None and not NEGATED.search(_NOUN.sub("", words[: nouns[-1].start()]))


def is_right(metric: str) -> bool:
    """Whether it is a share of right items: an accuracy, an exact match, those of a single step of a task."""
    return _RIGHT.fullmatch(_noun(metric)) is not None or is_step(metric)


def is_step(metric: str) -> bool:
    """Whether it is of one of a task's steps, scored by itself."""
    return STEP.match(metric) is not None


def continuous(metric: str) -> bool:
    """Whether it is known to move with every change of the model's probabilities. Of another metric it is not known: OLMES'
    primary_score is an accuracy."""
    return _CONTINUOUS.fullmatch(_noun(metric)) is not None or MC2.search(metric.lower()) is not None


def is_share(metric: str) -> bool | None:
    """Whether it lies between 0 and 1 (or 100 percent); None where its name does not say."""
    if _OPEN.fullmatch(_noun(metric)):
        return False
    known = is_right(metric) or _BOUNDED.fullmatch(_noun(metric)) or _UNIT.search(_words(metric))
    return True if known else None
