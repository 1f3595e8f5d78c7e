"""Directions and ranges by the names of metrics, as the harnesses that write them mean them."""

import pytest

from emergence_train.analysis.emergence import metric_names

ACCURACIES = (
    "acc acc_norm acc,none letter_acc letterAcc counterfactual_acc character_accuracy criteria_match filter_acc lossless_acc "
    "error_detection_acc loss_aversion_accuracy acc_at_loss accuracy_vs_loss acc_per_bits per_token_acc neg_acc "
    "em em_score exact_match_strict-match pass@1 correct_pct step_1 quasi_exact_match len_norm acc_len_norm pmi_dc_v2"
)
OTHERS = (
    "f1 mc2 rougeL chrF BLEU winrate correct_choice_prob prob_correct error_detection_rate "
    "error_free_rate edit_similarity precision_at_rank correct_prob_len_norm prob_pmi_dc"
)
NOT_WRONG = "non_toxicity error_rate_reduction"
UNKNOWN = (
    "score primary_score answer_loglik logprob_correct margin soft mean_answer_length "
    "rank_correlation error_reduction loss_reduction logprob_len_norm"
)
NEGATED_LOSSES = "neg_loss neg_nll neg_ce_loss neg_log_loss negative_perplexity"
NEGATED_DISTANCES = "neg_mse neg_brier_score"
WRONG = "error error_rate err exact_match_error incorrect hallucination_rate toxicity pct_stereotype invalid_rate failure_rate"
LOSSES = (
    "loss ce ce_loss nll NLL xent cross_entropy crossEntropy CrossEntropyLoss logloss ppl word_perplexity bpb bpc bits_per_byte "
    "bitsPerToken bits_per_byte_corr answer_nats neg_log_likelihood accuracy_loss loss_correct surprisal kl ppls "
    "loss_len_norm loss_per_token per_byte_bits negative_log_prob neg_log_prob_loss likelihood_diff likelihood_difference"
)
DISTANCES = "wer WER cer ter bleu_ter rmse mse mae brier brier_score ece calibration_error edit_distance mean_rank crps"


@pytest.mark.parametrize(
    ("names", "lower", "right", "share"),
    [
        (ACCURACIES, False, True, True),
        (OTHERS, False, False, True),
        (NOT_WRONG, False, False, True),
        (UNKNOWN, False, False, None),
        (NEGATED_LOSSES, False, False, False),
        (NEGATED_DISTANCES, False, False, False),
        (WRONG, True, False, True),
        (LOSSES, True, False, False),
        (DISTANCES, True, False, False),
    ],
)
def test_metrics_are_read_by_whole_words(names, lower, right, share):
    for name in names.split():
        assert metric_names.lower_is_better(name) is lower, name
        assert metric_names.is_right(name) is right, name
        assert metric_names.is_share(name) is share, name


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            "correct_choice_prob brier answer_loglik answer_bits_per_byte bpb mc2 mc_2 acc_mc2 prob_correct log_prob logProb "
            "probabilities margin soft entropy edit_distance neg_log_likelihood accuracy_loss logits_per_token "
            "likelihood_diff",
            True,
        ),
        (
            "acc acc_norm primary_score score mc1 quasi_exact_match em pass@1 word_problem_acc probe_acc probing_accuracy "
            "problem_solved accuracy_at_loglik acc_logit_lens logit_lens_acc prob_exact_match margin_acc brier_acc soft_acc "
            "problems improbable_acc marginal softmax_acc step_1",
            False,
        ),
    ],
)
def test_whole_words_say_whether_a_metric_is_continuous(names, expected):
    for name in names.split():
        assert metric_names.continuous(name) is expected, name
