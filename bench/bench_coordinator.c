// How many samples a second rank 0 can handle: the whole caption job (manifest, prompts, tokenizer, scheduler, control
// messages, rows, writing) with stages that answer at once. The control channel is replaced by one that packs
// what is sent and gives real answers back; everything else is what runs.
//
//   bench_coordinator [SAMPLES] [TOKENS] [STAGES] [REPLICAS]      200000 samples of 8 tokens over 4 stages, 1 replica
#include "common/control.h"
#include "common/log.h"
#include "coordinator/caption.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { EOS = 2, WORD = 300 };

static int n_tokens = 8, n_stages = 4, n_replicas = 1;

// --- The stages ----------------------------------------------------------------------------------------------------

struct answer {
    int from;
    uint8_t *bytes;
    size_t n_bytes;
    struct answer *next;
};

struct lvp_control {
    struct answer *first, **last;
    uint8_t *taken;  // the last one polled
    uint8_t *packed; // what was sent, as MPI would get it
    size_t capacity;
    uint64_t messages, bytes;
};

static void answer(struct lvp_control *control, int from, const Lvp__FromWorker *message)
{
    struct answer *a = malloc(sizeof *a);
    if (a == NULL) abort();
    a->from = from;
    a->n_bytes = lvp__from_worker__get_packed_size(message);
    a->bytes = malloc(a->n_bytes + 1);
    a->next = NULL;
    if (a->bytes == NULL) abort();
    (void)lvp__from_worker__pack(message, a->bytes);
    *control->last = a;
    control->last = &a->next;
}

enum lvp_status lvp_control_open(MPI_Comm communicator, struct lvp_control **control)
{
    (void)communicator;
    *control = calloc(1, sizeof **control);
    if (*control == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory");
    (*control)->last = &(*control)->first;
    for (int rank = 1; rank <= n_stages * n_replicas; rank++) {
        Lvp__Hello hello = LVP__HELLO__INIT;
        Lvp__FromWorker message = LVP__FROM_WORKER__INIT;
        hello.host = (char[]){"bench"};
        hello.version = (char[]){LVP_VERSION};
        hello.kernel_set = (char[]){"portable"};
        hello.threads = 1;
        message.body_case = LVP__FROM_WORKER__BODY_HELLO;
        message.hello = &hello;
        answer(*control, rank, &message);
    }
    return LVP_OK;
}

void lvp_control_close(struct lvp_control *control)
{
    if (control == NULL) return;
    (void)printf("%llu messages to stages, %.1f MB\n", (unsigned long long)control->messages,
                 (double)control->bytes * 1e-6);
    free(control->taken);
    free(control->packed);
    free(control);
}

static void answer_setup(struct lvp_control *control, int rank)
{
    Lvp__Ready ready = LVP__READY__INIT;
    Lvp__FromWorker message = LVP__FROM_WORKER__INIT;
    message.body_case = LVP__FROM_WORKER__BODY_READY;
    message.ready = &ready;
    answer(control, rank, &message);
}

static void answer_prepare(struct lvp_control *control, int rank, const Lvp__Prepare *prepare)
{
    for (size_t i = 0; i < prepare->n_images; i++) {
        Lvp__Prepared prepared = LVP__PREPARED__INIT;
        Lvp__FromWorker message = LVP__FROM_WORKER__INIT;
        prepared.slot = prepare->images[i]->slot;
        message.body_case = LVP__FROM_WORKER__BODY_PREPARED;
        message.prepared = &prepared;
        answer(control, rank, &message);
    }
}

// The vision blocks of the first stage; with this partition, `merge` is there too.
static void answer_encode(struct lvp_control *control, int rank, const Lvp__Encode *encode)
{
    Lvp__EncodeDone done = LVP__ENCODE_DONE__INIT;
    Lvp__FromWorker message = LVP__FROM_WORKER__INIT;
    done.number = encode->number;
    message.body_case = LVP__FROM_WORKER__BODY_ENCODE_DONE;
    message.encode_done = &done;
    answer(control, rank, &message);
}

static void answer_step(struct lvp_control *control, int rank, const Lvp__Step *step)
{
    static int32_t tokens[4096];
    static float logprobs[4096];
    Lvp__StepDone done = LVP__STEP_DONE__INIT;
    Lvp__FromWorker message = LVP__FROM_WORKER__INIT;
    if ((rank - 1) % n_stages != n_stages - 1) return; // only the last stage answers
    for (size_t s = 0; s < step->n_sequences; s++)
        tokens[s] = (int)step->sequences[s]->token_index + 1 == n_tokens ? EOS : WORD;
    done.number = step->number;
    done.n_tokens = done.n_logprobs = step->n_sequences;
    done.tokens = tokens;
    done.logprobs = logprobs;
    message.body_case = LVP__FROM_WORKER__BODY_STEP_DONE;
    message.step_done = &done;
    answer(control, rank, &message);
}

static void answer_finish(struct lvp_control *control, int rank)
{
    Lvp__Statistics statistics = LVP__STATISTICS__INIT;
    Lvp__FromWorker message = LVP__FROM_WORKER__INIT;
    message.body_case = LVP__FROM_WORKER__BODY_STATISTICS;
    message.statistics = &statistics;
    answer(control, rank, &message);
}

static void take(struct lvp_control *control, int rank, const Lvp__ToWorker *message)
{
    control->messages++;
    switch (message->body_case) {
    case LVP__TO_WORKER__BODY_SETUP:
        answer_setup(control, rank);
        break;
    case LVP__TO_WORKER__BODY_PREPARE:
        answer_prepare(control, rank, message->prepare);
        break;
    case LVP__TO_WORKER__BODY_ENCODE:
        answer_encode(control, rank, message->encode);
        break;
    case LVP__TO_WORKER__BODY_STEP:
        answer_step(control, rank, message->step);
        break;
    case LVP__TO_WORKER__BODY_FINISH:
        answer_finish(control, rank);
        break;
    default:
        break;
    }
}

enum lvp_status lvp_control_send(struct lvp_control *control, int first, int n, const ProtobufCMessage *base)
{
    size_t n_bytes = protobuf_c_message_get_packed_size(base);
    if (n_bytes > control->capacity) {
        free(control->packed);
        control->packed = malloc(2 * n_bytes);
        if (control->packed == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory");
        control->capacity = 2 * n_bytes;
    }
    control->bytes += protobuf_c_message_pack(base, control->packed);
    for (int rank = first; rank < first + n; rank++) take(control, rank, (const Lvp__ToWorker *)(const void *)base);
    return LVP_OK;
}

enum lvp_status lvp_control_poll(struct lvp_control *control, int *from, const uint8_t **bytes, size_t *n_bytes)
{
    struct answer *a = control->first;
    *bytes = NULL;
    if (a == NULL) return LVP_OK;
    control->first = a->next;
    if (control->first == NULL) control->last = &control->first;
    free(control->taken);
    control->taken = a->bytes;
    *from = a->from;
    *bytes = a->bytes;
    *n_bytes = a->n_bytes;
    free(a);
    return LVP_OK;
}

bool lvp_control_sending(struct lvp_control *control)
{
    (void)control;
    return false;
}

enum lvp_status lvp_control_unpack_from_worker(const uint8_t *bytes, size_t n_bytes, Lvp__FromWorker **message)
{
    *message = lvp__from_worker__unpack(NULL, n_bytes, bytes);
    return *message != NULL ? LVP_OK : lvp_fail(LVP_ERR_FORMAT, "no message");
}

void lvp_poll_rest(enum lvp_expectation expectation, int idle_rounds)
{
    (void)expectation;
    (void)idle_rounds;
}

// --- The job -------------------------------------------------------------------------------------------------------

static void write_manifest(const char *path, int n_samples)
{
    FILE *file = fopen(path, "w");
    if (file == NULL) abort();
    for (int i = 0; i < n_samples; i++)
        (void)fprintf(file, "{\"id\":\"sample-%08d\",\"image\":\"images/%04d/%08d.jpg\",\"topic\":\"number %d\"}\n", i,
                      i / 1000, i, i);
    if (fclose(file) != 0) abort();
}

static int argument(int argc, char **argv, int i, int otherwise)
{
    return argc > i ? atoi(argv[i]) : otherwise;
}

int main(int argc, char **argv)
{
    int n_samples = argument(argc, argv, 1, 200000);
    n_tokens = argument(argc, argv, 2, 8);
    n_stages = argument(argc, argv, 3, 4);
    n_replicas = argument(argc, argv, 4, 1);
    char folder[] = "/tmp/lvp_bench_XXXXXX", input[64], output[64], command[80];
    if (mkdtemp(folder) == NULL) return 1;
    (void)snprintf(input, sizeof input, "%s/rows.jsonl", folder);
    (void)snprintf(output, sizeof output, "%s/out", folder);
    write_manifest(input, n_samples);
    static const char *const prompts[] = {"What is in the image of {topic}?"}; // every prompt is another text
    struct lvp_caption_options options = {.model = "models/demo",
                                          .stages = n_stages,
                                          .replicas = n_replicas,
                                          .dtype = LVP_BF16,
                                          .weights = LVP_BF16,
                                          .input = input,
                                          .output = output,
                                          .prompts = prompts,
                                          .n_prompts = 1,
                                          .max_new_tokens = n_tokens,
                                          .top_p = 1,
                                          .limit = -1,
                                          .n_shards = 1,
                                          .max_errors = -1,
                                          .quiet = false};
    // The vision blocks, `merge` and a decoder layer on the first stage, a decoder layer on each of the others.
    struct lvp_model_config config;
    if (lvp_model_config_load(options.model, &config) != LVP_OK) return 1;
    options.partition.mode = LVP_PARTITION_CUTS;
    for (int s = 1; s < n_stages; s++)
        options.partition.cuts[options.partition.n_cuts++] = lvp_block_index(&config, LVP_BLOCK_DEC, s);
    bool clean = false;
    enum lvp_status status = lvp_caption(&options, MPI_COMM_NULL, n_stages * n_replicas, &clean);
    if (status != LVP_OK) (void)fprintf(stderr, "%s\n", lvp_error_text());
    (void)snprintf(command, sizeof command, "rm -rf %s", folder);
    return status == LVP_OK && system(command) == 0 ? 0 : 1;
}
