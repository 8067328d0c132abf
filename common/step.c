#include "common/step.h"

int lvp_depth_of_layer(const struct lvp_prune_counts *prune, int layer)
{
    int depth = 0;
    while (depth < prune->n_points && prune->after[depth] <= layer) depth++;
    return depth;
}

int lvp_seq_rows(const struct lvp_prune_counts *prune, const struct lvp_step_seq *seq, int depth)
{
    if (!seq->prefill) return 1;
    return seq->n_ids - seq->n_images + seq->n_images * prune->rows[depth];
}

int lvp_step_rows(const struct lvp_prune_counts *prune, const struct lvp_step *step, int depth)
{
    int n_rows = 0;
    for (int s = 0; s < step->n_seqs; s++) n_rows += lvp_seq_rows(prune, &step->seqs[s], depth);
    return n_rows;
}

int lvp_seq_kv_slots(const struct lvp_prune_counts *prune, const struct lvp_step_seq *seq, int depth)
{
    return lvp_seq_rows(prune, seq, depth) + seq->max_new;
}
