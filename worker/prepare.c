#include "worker/prepare.h"

#include "common/clock.h"
#include "common/record.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct slot {
    float *pixels;
    struct lvp_image_file file;
    char *path; // of `file`
    uint64_t sample;
    bool busy;
    double start;
    enum lvp_status status;
    char failure[512]; // with status
    struct lvp_sample_error error;
};

// Slot numbers in order; a slot is in a queue at most once, so n_slots places are enough.
struct queue {
    int *items;
    int first, n, capacity;
};

struct lvp_prepare {
    struct lvp_image_config config;
    int64_t max_pixels;
    int n_slots, n_threads, n_busy;
    struct slot *slots;
    struct queue todo, done;
    pthread_mutex_t lock;
    pthread_cond_t work;
    pthread_t *threads;
    bool stop;
    int n_started; // threads that have taken a number
};

static void push(struct queue *queue, int item)
{
    queue->items[(queue->first + queue->n++) % queue->capacity] = item;
}

static int pop(struct queue *queue)
{
    int item = queue->items[queue->first];
    queue->first = (queue->first + 1) % queue->capacity;
    queue->n--;
    return item;
}

// A benchmark's image: pixels between -2 and 2, others for every sample.
static void fill_noise(const struct lvp_prepare *prepare, struct slot *slot)
{
    size_t n = 3 * (size_t)prepare->config.crop_height * (size_t)prepare->config.crop_width;
    uint32_t state = (uint32_t)slot->sample * 2654435761U + 1;
    for (size_t i = 0; i < n; i++) {
        state = state * 1664525U + 1013904223U; // Numerical Recipes' generator
        slot->pixels[i] = (float)(int32_t)state * 0x1p-30f;
    }
}

// Running out of memory over one image is that sample's trouble: the coordinator tries it again by itself.
static void load_image(struct lvp_prepare *prepare, struct slot *slot)
{
    lvp_error_clear();
    slot->error = (struct lvp_sample_error){.code = LVP_SAMPLE_OK};
    slot->status = LVP_OK;
    if (slot->path[0] == '\0') {
        fill_noise(prepare, slot);
        return;
    }
    slot->status = lvp_image_load(&slot->file, &prepare->config, prepare->max_pixels, slot->pixels, &slot->error);
    if (slot->status == LVP_ERR_MEMORY) {
        lvp_sample_error_set(&slot->error, LVP_SAMPLE_CRASHED, "out of memory: %.200s", lvp_error_text());
        slot->status = LVP_OK;
    }
    if (slot->status != LVP_OK) (void)snprintf(slot->failure, sizeof slot->failure, "%s", lvp_error_text());
}

static void *run(void *argument)
{
    struct lvp_prepare *prepare = argument;
    pthread_mutex_lock(&prepare->lock);
    lvp_record_image_thread(prepare->n_started++);
    for (;;) {
        while (prepare->todo.n == 0 && !prepare->stop) pthread_cond_wait(&prepare->work, &prepare->lock);
        if (prepare->stop) break;
        int index = pop(&prepare->todo);
        struct slot *slot = &prepare->slots[index];
        pthread_mutex_unlock(&prepare->lock);
        slot->start = lvp_wall_seconds();
        lvp_record_work("decoding an image", &slot->sample, 1);
        load_image(prepare, slot);
        lvp_record_work(NULL, NULL, 0);
        lvp_record_tick();
        pthread_mutex_lock(&prepare->lock);
        push(&prepare->done, index);
    }
    pthread_mutex_unlock(&prepare->lock);
    return NULL;
}

enum lvp_status lvp_prepare_create(const struct lvp_image_config *config, int64_t max_pixels, int n_slots,
                                   int n_threads, struct lvp_prepare **result)
{
    size_t n_pixels = 3 * (size_t)config->crop_height * (size_t)config->crop_width;
    struct lvp_prepare *prepare = calloc(1, sizeof *prepare);
    if (prepare == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory for the image pool");
    *prepare = (struct lvp_prepare){.config = *config, .max_pixels = max_pixels, .n_slots = n_slots};
    pthread_mutex_init(&prepare->lock, NULL);
    pthread_cond_init(&prepare->work, NULL);
    prepare->slots = calloc((size_t)n_slots, sizeof *prepare->slots);
    prepare->threads = calloc((size_t)n_threads, sizeof *prepare->threads);
    prepare->todo = (struct queue){.items = calloc((size_t)n_slots, sizeof(int)), .capacity = n_slots};
    prepare->done = (struct queue){.items = calloc((size_t)n_slots, sizeof(int)), .capacity = n_slots};
    bool complete = prepare->slots != NULL && prepare->threads != NULL && prepare->todo.items != NULL &&
                    prepare->done.items != NULL;
    for (int i = 0; complete && i < n_slots; i++) {
        prepare->slots[i].pixels = malloc(n_pixels * sizeof(float));
        complete = prepare->slots[i].pixels != NULL;
    }
    for (int i = 0; complete && i < n_threads; i++) {
        complete = pthread_create(&prepare->threads[i], NULL, run, prepare) == 0;
        if (complete) prepare->n_threads++;
    }
    if (!complete) {
        const struct timespec soon = {time(NULL) + 5, 0};
        (void)lvp_prepare_destroy(prepare, &soon); // idle threads
        return lvp_fail(LVP_ERR_MEMORY, "out of memory for the pixels of %d images", n_slots);
    }
    *result = prepare;
    return LVP_OK;
}

bool lvp_prepare_destroy(struct lvp_prepare *prepare, const struct timespec *until)
{
    if (prepare == NULL) return true;
    pthread_mutex_lock(&prepare->lock);
    prepare->stop = true;
    pthread_cond_broadcast(&prepare->work);
    pthread_mutex_unlock(&prepare->lock);
    for (; prepare->n_threads > 0; prepare->n_threads--)
        if (pthread_timedjoin_np(prepare->threads[prepare->n_threads - 1], NULL, until) != 0) return false;
    for (int i = 0; prepare->slots != NULL && i < prepare->n_slots; i++) {
        free(prepare->slots[i].pixels);
        free(prepare->slots[i].path);
    }
    pthread_mutex_destroy(&prepare->lock);
    pthread_cond_destroy(&prepare->work);
    free(prepare->slots);
    free(prepare->threads);
    free(prepare->todo.items);
    free(prepare->done.items);
    free(prepare);
    return true;
}

enum lvp_status lvp_prepare_submit(struct lvp_prepare *prepare, int index, const struct lvp_image_file *file,
                                   uint64_t sample)
{
    enum lvp_status status = LVP_OK;
    char *copy = strdup(file->path);
    if (copy == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory for a path");
    pthread_mutex_lock(&prepare->lock);
    if (index < 0 || index >= prepare->n_slots || prepare->slots[index].busy) {
        status = lvp_fail(LVP_ERR_FORMAT, "image slot %d cannot be prepared", index);
    } else {
        struct slot *slot = &prepare->slots[index];
        slot->busy = true;
        free(slot->path);
        slot->path = copy;
        slot->file = *file;
        slot->file.path = copy;
        slot->sample = sample;
        copy = NULL;
        prepare->n_busy++;
        push(&prepare->todo, index);
        pthread_cond_signal(&prepare->work);
    }
    pthread_mutex_unlock(&prepare->lock);
    free(copy);
    return status;
}

enum lvp_status lvp_prepare_take(struct lvp_prepare *prepare, struct lvp_prepared *result, bool *taken)
{
    enum lvp_status status = LVP_OK;
    pthread_mutex_lock(&prepare->lock);
    *taken = prepare->done.n > 0;
    if (*taken) {
        int index = pop(&prepare->done);
        prepare->slots[index].busy = false;
        prepare->n_busy--;
        *result = (struct lvp_prepared){
            .slot = index, .start = prepare->slots[index].start, .error = prepare->slots[index].error};
        if (prepare->slots[index].status != LVP_OK)
            status = lvp_fail(prepare->slots[index].status, "%s", prepare->slots[index].failure);
    }
    pthread_mutex_unlock(&prepare->lock);
    return status;
}

bool lvp_prepare_busy(struct lvp_prepare *prepare)
{
    pthread_mutex_lock(&prepare->lock);
    bool busy = prepare->n_busy > 0;
    pthread_mutex_unlock(&prepare->lock);
    return busy;
}

const float *lvp_prepare_pixels(const struct lvp_prepare *prepare, int slot)
{
    return prepare->slots[slot].pixels;
}
