#include "common/tokenizer_bpe.h"

#include "common/tokenizer_config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

struct token {
    const char *text; // in bpe->texts, NUL-terminated; NULL: no token has this id
    size_t n_bytes;
};

struct merge {
    uint64_t pair; // left id << 32 | right id; EMPTY: a free slot
    int32_t rank;  // lower goes first
    int32_t id;    // of the merged token
};

static const uint64_t EMPTY = UINT64_MAX;

struct lvp_bpe {
    char *texts;          // every token's text, one after the other
    struct token *tokens; // [size], by id
    int32_t count, size;
    int32_t *slots; // [slot_mask + 1]: hash table text -> id, -1 in free slots, linear probing
    size_t slot_mask;
    struct merge *merges; // [merge_mask + 1]: hash table, linear probing
    size_t merge_mask;
    int32_t byte_ids[256]; // of <0x00>..<0xFF>; -1: not in the vocabulary or no byte_fallback
    int32_t unk_id;        // -1: characters that are not known are left out
    bool fuse_unk;         // neighbouring unknown characters are one
    bool ignore_merges;    // a piece that is a token as a whole is not taken apart
};

static size_t table_size(size_t n)
{
    size_t size = 16;
    while (size < 2 * n) size *= 2;
    return size;
}

// Where the id of a text is, or the free slot where it would go.
static int32_t *find_slot(const struct lvp_bpe *bpe, const char *text, size_t n_bytes)
{
    size_t slot = (size_t)XXH3_64bits(text, n_bytes) & bpe->slot_mask;
    // clang-tidy does not see that parse_vocab's failures end the parsing.
    while (bpe->slots[slot] >= 0) { // NOLINT(clang-analyzer-core.NullDereference)
        const struct token *token = &bpe->tokens[bpe->slots[slot]];
        if (token->n_bytes == n_bytes && memcmp(token->text, text, n_bytes) == 0) break;
        slot = (slot + 1) & bpe->slot_mask;
    }
    return &bpe->slots[slot];
}

int32_t lvp_bpe_id(const struct lvp_bpe *bpe, const char *token, size_t n_bytes)
{
    return *find_slot(bpe, token, n_bytes);
}

const char *lvp_bpe_token(const struct lvp_bpe *bpe, int32_t id)
{
    return id < 0 || id >= bpe->size ? NULL : bpe->tokens[id].text;
}

int32_t lvp_bpe_count(const struct lvp_bpe *bpe)
{
    return bpe->count;
}

int32_t lvp_bpe_size(const struct lvp_bpe *bpe)
{
    return bpe->size;
}

// The slot of a pair, or the free one where it would go.
static struct merge *find_merge(const struct lvp_bpe *bpe, int32_t left, int32_t right)
{
    const uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    size_t slot = (size_t)XXH3_64bits(&pair, sizeof pair) & bpe->merge_mask;
    while (bpe->merges[slot].pair != EMPTY && bpe->merges[slot].pair != pair) slot = (slot + 1) & bpe->merge_mask;
    return &bpe->merges[slot];
}

// Merging: symbols are a linked list, candidate merges a binary heap with the best one (lowest rank, then leftmost) on
// top. A candidate is not removed when its symbols change: it is checked when it comes up.

struct symbol {
    int32_t id;         // -1: merged into the symbol before it
    int32_t prev, next; // positions; -1: none
};

struct candidate {
    int32_t rank, at, id;
};

struct merger {
    struct symbol *symbols;
    int32_t n_symbols;
    struct candidate *heap;
    size_t n_heap;
};

static bool goes_before(const struct candidate *a, const struct candidate *b)
{
    return a->rank != b->rank ? a->rank < b->rank : a->at < b->at;
}

static void heap_push(struct merger *merger, struct candidate candidate)
{
    size_t at = merger->n_heap++;
    while (at > 0 && goes_before(&candidate, &merger->heap[(at - 1) / 2])) {
        merger->heap[at] = merger->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    merger->heap[at] = candidate;
}

static struct candidate heap_pop(struct merger *merger)
{
    const struct candidate top = merger->heap[0], last = merger->heap[--merger->n_heap];
    size_t at = 0;
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= merger->n_heap) break;
        if (child + 1 < merger->n_heap && goes_before(&merger->heap[child + 1], &merger->heap[child])) child++;
        if (!goes_before(&merger->heap[child], &last)) break;
        merger->heap[at] = merger->heap[child];
        at = child;
    }
    merger->heap[at] = last;
    return top;
}

// A candidate for the symbol at `at` and the one after it, where there is a merge for the two.
static void push_pair(const struct lvp_bpe *bpe, struct merger *merger, int32_t at)
{
    if (at < 0 || merger->symbols[at].next < 0) return;
    const struct merge *merge = find_merge(bpe, merger->symbols[at].id, merger->symbols[merger->symbols[at].next].id);
    if (merge->pair != EMPTY) heap_push(merger, (struct candidate){.rank = merge->rank, .at = at, .id = merge->id});
}

static void merge_all(const struct lvp_bpe *bpe, struct merger *merger)
{
    struct symbol *symbols = merger->symbols;
    for (int32_t at = 0; at < merger->n_symbols; at++) push_pair(bpe, merger, at);
    while (merger->n_heap > 0) {
        const struct candidate top = heap_pop(merger);
        struct symbol *left = &symbols[top.at];
        if (left->id < 0 || left->next < 0) continue;
        struct symbol *right = &symbols[left->next];
        const struct merge *merge = find_merge(bpe, left->id, right->id);
        if (merge->pair == EMPTY || merge->id != top.id) continue;
        left->id = top.id;
        left->next = right->next;
        right->id = -1;
        if (left->next >= 0) symbols[left->next].prev = top.at;
        push_pair(bpe, merger, left->prev);
        push_pair(bpe, merger, top.at);
    }
}

static void add_symbol(struct merger *merger, int32_t id)
{
    const int32_t at = merger->n_symbols++;
    merger->symbols[at] = (struct symbol){.id = id, .prev = at - 1, .next = -1};
    if (at > 0) merger->symbols[at - 1].next = at;
}

// The bytes of a character as symbols; false when the vocabulary does not have them all.
static bool add_bytes(const struct lvp_bpe *bpe, const char *text, size_t n_bytes, struct merger *merger)
{
    for (size_t i = 0; i < n_bytes; i++) {
        if (bpe->byte_ids[(unsigned char)text[i]] < 0) return false;
    }
    for (size_t i = 0; i < n_bytes; i++) add_symbol(merger, bpe->byte_ids[(unsigned char)text[i]]);
    return true;
}

// One symbol a character; one a byte where the character is not in the vocabulary.
static void add_characters(const struct lvp_bpe *bpe, const char *text, size_t n_bytes, struct merger *merger)
{
    bool pending_unk = false; // an unknown symbol is held back in case more are fused into it
    for (size_t at = 0, length; at < n_bytes; at += length) {
        length = lvp_utf8_length(text + at, n_bytes - at);
        if (length == 0) length = 1; // not reached: the text is valid
        const int32_t id = lvp_bpe_id(bpe, text + at, length);
        if (id >= 0) {
            if (pending_unk) add_symbol(merger, bpe->unk_id);
            pending_unk = false;
            add_symbol(merger, id);
        } else if (!add_bytes(bpe, text + at, length, merger) && bpe->unk_id >= 0) {
            if (pending_unk && !bpe->fuse_unk) add_symbol(merger, bpe->unk_id);
            pending_unk = true;
        }
    }
    if (pending_unk) add_symbol(merger, bpe->unk_id);
}

enum lvp_status lvp_bpe_encode(const struct lvp_bpe *bpe, const char *text, size_t n_bytes, struct lvp_ids *ids)
{
    enum lvp_status status = LVP_OK;
    struct merger merger = {0};

    if (n_bytes == 0) return LVP_OK;
    if (n_bytes > INT32_MAX / 8)
        return lvp_fail(LVP_ERR_FORMAT, "a text of %zu bytes is too long to be tokenized", n_bytes);
    const int32_t whole = bpe->ignore_merges ? lvp_bpe_id(bpe, text, n_bytes) : -1;
    if (whole >= 0) return lvp_ids_append(ids, &whole, 1);
    // At most n symbols; n - 1 candidates at first and two more for each of the n - 1 merges.
    merger.symbols = malloc(n_bytes * sizeof *merger.symbols);
    merger.heap = malloc(3 * n_bytes * sizeof *merger.heap);
    if (merger.symbols == NULL || merger.heap == NULL) {
        status = lvp_fail(LVP_ERR_MEMORY, "no memory to tokenize %zu bytes", n_bytes);
        goto fail;
    }
    add_characters(bpe, text, n_bytes, &merger);
    merge_all(bpe, &merger);
    for (int32_t at = merger.n_symbols > 0 ? 0 : -1; at >= 0; at = merger.symbols[at].next)
        LVP_CHECK(lvp_ids_append(ids, &merger.symbols[at].id, 1));
fail:
    free(merger.symbols);
    free(merger.heap);
    return status;
}

// Parsing.

static enum lvp_status parse_vocab(json_t *vocab, struct lvp_bpe *bpe)
{
    const char *text;
    json_t *value;
    size_t n_bytes = 0, at = 0;
    if (!json_is_object(vocab)) return lvp_fail(LVP_ERR_MODEL, "tokenizer.json: model has no vocab");
    json_object_foreach(vocab, text, value)
    {
        const long long id = json_is_integer(value) ? (long long)json_integer_value(value) : -1;
        if (id < 0 || id > LVP_MAX_TOKEN_ID)
            return lvp_fail(LVP_ERR_MODEL, "tokenizer.json: token \"%.60s\" has no id or one out of range", text);
        if (id >= bpe->size) bpe->size = (int32_t)id + 1;
        bpe->count++;
        n_bytes += strlen(text) + 1; // bounded by the file's size
    }
    const size_t n_slots = table_size((size_t)bpe->count);
    bpe->slot_mask = n_slots - 1;
    bpe->texts = malloc(n_bytes + 1);
    bpe->tokens = calloc((size_t)bpe->size + 1, sizeof *bpe->tokens);
    bpe->slots = malloc(n_slots * sizeof *bpe->slots);
    if (bpe->texts == NULL || bpe->tokens == NULL || bpe->slots == NULL)
        return lvp_fail(LVP_ERR_MEMORY, "no memory for a vocabulary of %d tokens", bpe->count);
    memset(bpe->slots, 0xFF, n_slots * sizeof *bpe->slots); // -1
    json_object_foreach(vocab, text, value)
    {
        struct token *token = &bpe->tokens[json_integer_value(value)];
        if (token->text != NULL)
            return lvp_fail(LVP_ERR_MODEL, "tokenizer.json: \"%.60s\" and \"%.60s\" have the same id", token->text,
                            text);
        token->n_bytes = strlen(text);
        token->text = memcpy(bpe->texts + at, text, token->n_bytes + 1);
        at += token->n_bytes + 1;
        *find_slot(bpe, text, token->n_bytes) = (int32_t)json_integer_value(value);
    }
    return LVP_OK;
}

// A merge is "a b" (older files) or ["a", "b"]. The halves' texts belong to `value`.
static bool split_merge(const json_t *value, const char *halves[2], size_t n_bytes[2])
{
    if (json_is_string(value)) {
        const char *space = strchr(json_string_value(value), ' ');
        if (space == NULL || strchr(space + 1, ' ') != NULL) return false;
        halves[0] = json_string_value(value);
        halves[1] = space + 1;
        n_bytes[0] = (size_t)(space - halves[0]);
        n_bytes[1] = strlen(halves[1]);
        return true;
    }
    if (!json_is_array(value) || json_array_size(value) != 2) return false;
    for (size_t i = 0; i < 2; i++) {
        const json_t *half = json_array_get(value, i);
        if (!json_is_string(half)) return false;
        halves[i] = json_string_value(half);
        n_bytes[i] = json_string_length(half);
    }
    return true;
}

static enum lvp_status parse_merge(const json_t *value, size_t index, struct lvp_text *joined, struct lvp_bpe *bpe,
                                   int32_t *rank)
{
    const char *halves[2];
    size_t n_bytes[2];
    int32_t ids[2];
    if (json_is_string(value) && strncmp(json_string_value(value), "#version", 8) == 0) return LVP_OK;
    if (!split_merge(value, halves, n_bytes))
        return lvp_fail(LVP_ERR_MODEL, "tokenizer.json: merge %zu is malformed", index);
    joined->n_bytes = 0;
    for (size_t i = 0; i < 2; i++) {
        ids[i] = lvp_bpe_id(bpe, halves[i], n_bytes[i]);
        LVP_TRY(lvp_text_append(joined, halves[i], n_bytes[i]));
    }
    const int32_t id = lvp_bpe_id(bpe, joined->bytes, joined->n_bytes);
    if (ids[0] < 0 || ids[1] < 0 || id < 0)
        return lvp_fail(LVP_ERR_MODEL, "tokenizer.json: merge %zu has a token that is not in the vocabulary", index);
    struct merge *merge = find_merge(bpe, ids[0], ids[1]);
    *merge = (struct merge){.pair = (uint64_t)(uint32_t)ids[0] << 32 | (uint32_t)ids[1], .rank = (*rank)++, .id = id};
    return LVP_OK;
}

static enum lvp_status parse_merges(const json_t *merges, struct lvp_bpe *bpe)
{
    enum lvp_status status = LVP_OK;
    struct lvp_text joined = {0};
    int32_t rank = 0;

    if (!json_is_array(merges)) return lvp_fail(LVP_ERR_MODEL, "tokenizer.json: model has no merges");
    const size_t n = json_array_size(merges), n_slots = table_size(n);
    bpe->merge_mask = n_slots - 1;
    bpe->merges = malloc(n_slots * sizeof *bpe->merges);
    if (bpe->merges == NULL) return lvp_fail(LVP_ERR_MEMORY, "no memory for %zu merges", n);
    for (size_t i = 0; i < n_slots; i++) bpe->merges[i].pair = EMPTY;
    for (size_t i = 0; i < n; i++) LVP_CHECK(parse_merge(json_array_get(merges, i), i, &joined, bpe, &rank));
fail:
    free(joined.bytes);
    return status;
}

static enum lvp_status parse_options(const json_t *model, struct lvp_bpe *bpe)
{
    static const char *const unsupported[] = {"dropout", "continuing_subword_prefix", "end_of_word_suffix"};
    for (size_t i = 0; i < sizeof unsupported / sizeof *unsupported; i++) {
        const json_t *value = json_object_get(model, unsupported[i]);
        const bool empty = value == NULL || json_is_null(value) || json_string_length(value) == 0;
        if (!empty || json_is_number(value))
            return lvp_fail(LVP_ERR_MODEL, "tokenizer.json: a model with %s is not supported", unsupported[i]);
    }
    bpe->fuse_unk = json_is_true(json_object_get(model, "fuse_unk"));
    bpe->ignore_merges = json_is_true(json_object_get(model, "ignore_merges"));
    for (int byte = 0; byte < 256; byte++) {
        char name[8];
        (void)snprintf(name, sizeof name, "<0x%02X>", (unsigned)byte);
        bpe->byte_ids[byte] = json_is_true(json_object_get(model, "byte_fallback")) ? lvp_bpe_id(bpe, name, 6) : -1;
    }
    const json_t *unk = json_object_get(model, "unk_token");
    bpe->unk_id = -1;
    if (!json_is_string(unk)) return LVP_OK;
    bpe->unk_id = lvp_bpe_id(bpe, json_string_value(unk), json_string_length(unk));
    return bpe->unk_id >= 0 ? LVP_OK : lvp_fail(LVP_ERR_MODEL, "tokenizer.json: unk_token is not in the vocabulary");
}

enum lvp_status lvp_bpe_parse(const json_t *model, struct lvp_bpe **bpe)
{
    enum lvp_status status = LVP_OK;
    struct lvp_bpe *parsed = NULL;
    const char *type = json_string_value(json_object_get(model, "type"));

    *bpe = NULL;
    // Files of the first years leave the type out; a BPE is then told by its merges.
    const bool is_bpe = type == NULL ? json_is_array(json_object_get(model, "merges")) : strcmp(type, "BPE") == 0;
    if (!is_bpe)
        return lvp_fail(LVP_ERR_MODEL, "tokenizer.json: a model of type %.40s is not supported, only LLaMA-type BPE is",
                        type == NULL ? "unknown" : type);
    parsed = calloc(1, sizeof *parsed);
    if (parsed == NULL) return lvp_fail(LVP_ERR_MEMORY, "no memory for a tokenizer");
    LVP_CHECK(parse_vocab(json_object_get(model, "vocab"), parsed));
    LVP_CHECK(parse_merges(json_object_get(model, "merges"), parsed));
    LVP_CHECK(parse_options(model, parsed));
    *bpe = parsed;
    parsed = NULL;
fail:
    lvp_bpe_free(parsed);
    return status;
}

void lvp_bpe_free(struct lvp_bpe *bpe)
{
    if (bpe == NULL) return;
    free(bpe->texts);
    free(bpe->tokens);
    free(bpe->slots);
    free(bpe->merges);
    free(bpe);
}
