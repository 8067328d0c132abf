// What a worker takes from the rank before it: what was announced to the row, or with fewer vision rows where their
// number varies. The hop comes over a transport inside this process.
#include "common/tags.h"
#include "tests/model/told_worker.h"

// The rank before sends one prompt with 7 rows of text, of whose image 2 rows stay at most. `kept` of them come; NULL
// text means that the step must run.
static void expect_hop(bool vary, int kept, const char *text)
{
    enum { BEFORE = 1, RANK = 2, RANKS = 3, MOST = 16 };
    struct told told;
    struct step step;
    struct lvp_transport *ends[RANKS];
    struct lvp_transfer head_transfer = {0}, body_transfer = {0};
    unsigned char head[LVP_HOP_HEADER_BYTES + MOST * sizeof(int32_t)];
    int32_t positions[MOST], n_rows = 0;
    uint64_t row_bytes = (uint64_t)config.text.hidden * sizeof(float);
    float *body = calloc(MOST, row_bytes);
    for (int i = 0; i < 8; i++) {
        if (i == 3) // the image's token
            for (int v = 0; v < kept; v++) positions[n_rows++] = 3 + 2 * v;
        else
            positions[n_rows++] = i < 3 ? i : i + lvp_vision_tokens(&config) - 1;
    }
    const struct lvp_hop_header header = {.kind = LVP_HOP_STEP,
                                          .number = 1,
                                          .n_rows = (uint32_t)n_rows,
                                          .width = (uint32_t)config.text.hidden,
                                          .n_parts = 1,
                                          .dtype = LVP_F32,
                                          .payload_bytes = (uint64_t)n_rows * row_bytes,
                                          .vision_rows = (uint64_t)kept};
    lvp_hop_header_pack(&header, head);
    memcpy(head + LVP_HOP_HEADER_BYTES, positions, (size_t)n_rows * sizeof *positions);

    make_step(&step, 1);
    tell(&told, 2, (int[]){lvp_block_index(&config, LVP_BLOCK_DEC, 1)}, 1); // behind the prune point
    told.setup.prune_rows_vary = vary;
    struct lvp_compute *compute = start(&told);
    assert_int_equal(compute->status, LVP_OK);
    assert_int_equal(lvp_transport_loop_open(RANKS, ends), LVP_OK);
    struct lvp_transports transports = {.messages = ends[RANK]};
    assert_int_equal(ends[BEFORE]->ops->isend(ends[BEFORE], RANK, LVP_TAG_STEP_HEAD, head,
                                              LVP_HOP_HEADER_BYTES + (size_t)n_rows * sizeof *positions,
                                              &head_transfer),
                     LVP_OK);
    assert_int_equal(
        ends[BEFORE]->ops->isend(ends[BEFORE], RANK, LVP_TAG_STEP_BODY, body, header.payload_bytes, &body_transfer),
        LVP_OK);
    lvp_error_clear();
    pthread_mutex_lock(&compute->lock);
    enum lvp_status status = lvp_compute_step(compute, step_message(&step));
    pthread_mutex_unlock(&compute->lock);
    bool computed = false;
    for (double deadline = lvp_now() + 30; status == LVP_OK && !computed; lvp_poll_rest(LVP_EXPECT_SOON, 0)) {
        bool moved = false;
        pthread_mutex_lock(&compute->lock);
        status = lvp_lane_transfer(&compute->steps, transports, &compute->trace, &moved);
        if (status == LVP_OK) status = compute->status;
        computed = compute->steps.computed == 1;
        pthread_cond_signal(&compute->wake);
        pthread_mutex_unlock(&compute->lock);
        if (lvp_now() > deadline) fail_msg("the hop was neither taken nor refused");
    }
    assert_int_equal(status, text == NULL ? LVP_OK : LVP_ERR_FORMAT);
    if (text != NULL && strstr(lvp_error_text(), text) == NULL)
        fail_msg("'%s' does not say '%s'", lvp_error_text(), text);
    lvp_compute_stop(compute, transports);
    for (int i = 0; i < RANKS; i++) ends[i]->ops->close(ends[i]);
    free(compute);
    free(body);
}

static void test_hop(void **state)
{
    (void)state;
    expect_hop(false, 2, NULL);
    expect_hop(false, 1, "rows is 8, 9 was announced");
    expect_hop(false, 3, "rows is 10, 9 was announced");
    expect_hop(true, 2, NULL);
    expect_hop(true, 1, NULL);
    expect_hop(true, 0, NULL);
    expect_hop(true, 3, "rows is 10, 9 was announced");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_hop)};
    return cmocka_run_group_tests(tests, set_up, NULL);
}
