#include "coordinator/eval/metric.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_WORDS = 4 }; // of a fact

bool lvp_metric_find(const char *name, enum lvp_metric *metric)
{
    static const char *const names[] = {"exact", "soft", "parts", "facts"};
    for (int i = 0; i < 4; i++)
        if (strcmp(name, names[i]) == 0) {
            *metric = (enum lvp_metric)i;
            return true;
        }
    return false;
}

// Appends the word as it counts; NULL where it does not.
static char *put_word(char *to, const char *word, size_t n)
{
    static const char *const articles[] = {"a", "an", "the"};
    static const char *const numbers[] = {"zero", "one",   "two",   "three", "four", "five",
                                          "six",  "seven", "eight", "nine",  "ten"};
    for (size_t i = 0; i < sizeof articles / sizeof *articles; i++)
        if (strlen(articles[i]) == n && memcmp(articles[i], word, n) == 0) return to;
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (strlen(numbers[i]) == n && memcmp(numbers[i], word, n) == 0) {
            word = i == 10 ? "10" : &"0123456789"[i];
            n = i == 10 ? 2 : 1;
            break;
        }
    memcpy(to, word, n);
    to[n] = ' ';
    return to + n + 1;
}

char *lvp_metric_normalise(const char *text)
{
    size_t n = strlen(text);
    char *lower = malloc(n + 1), *result = malloc(2 * n + 3), *to = result; // every word with a space behind it
    if (lower == NULL || result == NULL) {
        free(lower);
        free(result);
        return NULL;
    }
    for (size_t i = 0; i < n; i++) {
        // A point or comma inside a number stays; other punctuation parts words, but for apostrophes.
        bool inside = (text[i] == '.' || text[i] == ',') && i > 0 && isdigit((unsigned char)text[i - 1]) &&
                      isdigit((unsigned char)text[i + 1]);
        bool word = isalnum((unsigned char)text[i]) || (unsigned char)text[i] >= 0x80 || text[i] == '\'' || inside;
        lower[i] = word ? (char)tolower((unsigned char)text[i]) : ' ';
    }
    for (size_t i = 0, end; i < n; i = end) {
        end = i;
        while (end < n && lower[end] != ' ') end++;
        if (end > i) to = put_word(to, lower + i, end - i);
        if (end == i) end++;
    }
    *(to > result ? to - 1 : to) = '\0';
    free(lower);
    return result;
}

bool lvp_metric_takes(enum lvp_metric metric, const json_t *answers)
{
    for (size_t i = 0; i < json_array_size(answers); i++) {
        const json_t *answer = json_array_get(answers, i);
        bool list = metric == LVP_METRIC_FACTS;
        if (list ? json_array_size(answer) == 0 : !json_is_string(answer)) return false;
        for (size_t f = 0; list && f < json_array_size(answer); f++)
            if (!json_is_string(json_array_get(answer, f))) return false;
    }
    return json_array_size(answers) > 0;
}

// 1 where the normalised text equals the answer, 0 where not, -1 without memory.
static int equals(const char *normalised, const json_t *answer)
{
    char *other = lvp_metric_normalise(json_string_value(answer));
    int same = other == NULL ? -1 : strcmp(normalised, other) == 0;
    free(other);
    return same;
}

static enum lvp_status no_memory(void)
{
    return lvp_fail(LVP_ERR_MEMORY, "scoring: out of memory");
}

static enum lvp_status score_equal(bool soft, const char *text, const json_t *answers, double *score)
{
    size_t n = json_array_size(answers), found = 0;
    char *normalised = lvp_metric_normalise(text);
    if (normalised == NULL) return no_memory();
    for (size_t i = 0; i < n; i++) {
        int same = equals(normalised, json_array_get(answers, i));
        if (same < 0) {
            free(normalised);
            return no_memory();
        }
        found += (size_t)same;
    }
    free(normalised);
    // Leaving out one of the `found` equal answers, and leaving out one of the others.
    double with = (double)found / 3, without = ((double)found - 1) / 3;
    if (!soft || n < 3)
        *score = found > 0;
    else if (found == 0)
        *score = 0;
    else
        *score =
            ((double)found * (without < 1 ? without : 1) + (double)(n - found) * (with < 1 ? with : 1)) / (double)n;
    return LVP_OK;
}

// Cuts the next part or phrase off at a comma, a full stop or "and"; NULL at the end. Changes the text.
static char *next_part(char **rest)
{
    char *part = *rest;
    if (part == NULL) return NULL;
    char *comma = strpbrk(part, ",."), *word = strstr(part, " and ");
    bool at_word = word != NULL && (comma == NULL || word < comma);
    char *cut = at_word ? word : comma;
    *rest = cut == NULL ? NULL : cut + (at_word ? 5 : 1);
    if (cut != NULL) *cut = '\0';
    return part;
}

static enum lvp_status score_parts(const char *text, const json_t *answers, double *score)
{
    enum lvp_status status = LVP_OK;
    char *copy = strdup(text), *rest = copy;
    size_t right = 0, n = json_array_size(answers);
    if (copy == NULL) return no_memory();
    for (size_t i = 0; i < n && status == LVP_OK; i++) {
        char *part = next_part(&rest);
        char *normalised = part == NULL ? NULL : lvp_metric_normalise(part);
        int same = part == NULL ? 0 : normalised == NULL ? -1 : equals(normalised, json_array_get(answers, i));
        if (same < 0) status = no_memory();
        right += same > 0;
        free(normalised);
    }
    free(copy);
    *score = (double)right / (double)n;
    return status;
}

// --- facts

// The facts of the vocabulary that a normalised phrase names, the longest first, as an object {fact: times}.
static json_t *facts_in(const char *phrase, const json_t *vocabulary)
{
    json_t *facts = json_object();
    while (facts != NULL && *phrase != '\0') {
        const char *end[MAX_WORDS];
        int n = 0;
        for (const char *p = phrase; n < MAX_WORDS && *p != '\0'; n++) {
            p += strcspn(p, " ");
            end[n] = p;
            while (*p == ' ') p++;
        }
        const char *next = end[0];
        for (; n > 0; n--) {
            char *words = strndup(phrase, (size_t)(end[n - 1] - phrase));
            bool known = words != NULL && json_object_get(vocabulary, words) != NULL;
            if (known) {
                json_int_t times = json_integer_value(json_object_get(facts, words));
                json_object_set_new(facts, words, json_integer(times + 1));
                next = end[n - 1];
            }
            free(words);
            if (known) break;
        }
        phrase = next + strspn(next, " ");
    }
    return facts;
}

static json_int_t count(const json_t *facts)
{
    json_int_t n = 0;
    void *at;
    for (at = json_object_iter((json_t *)(size_t)facts); at != NULL;
         at = json_object_iter_next((json_t *)(size_t)facts, at))
        n += json_integer_value(json_object_iter_value(at));
    return n;
}

// Facts of a reference object that a phrase names: none where the object itself is not among them.
static json_int_t shared(const json_t *answer, const json_t *facts)
{
    json_int_t n = 0;
    for (size_t f = 0; f < json_array_size(answer); f++) {
        char *fact = lvp_metric_normalise(json_string_value(json_array_get(answer, f)));
        bool there = fact != NULL && json_object_get(facts, fact) != NULL;
        free(fact);
        if (f == 0 && !there) return 0;
        n += there;
    }
    return n;
}

// Every phrase is given to the reference object, not yet given, with which it shares most.
static enum lvp_status score_facts(const char *text, const json_t *answers, const json_t *vocabulary, double *score)
{
    size_t n = json_array_size(answers);
    char *copy = strdup(text), *rest = copy;
    bool *given = calloc(n, sizeof *given);
    json_int_t right = 0, named = 0, wanted = 0;
    enum lvp_status status = copy == NULL || given == NULL ? no_memory() : LVP_OK;
    for (size_t i = 0; i < n; i++) wanted += (json_int_t)json_array_size(json_array_get(answers, i));
    for (char *part; status == LVP_OK && (part = next_part(&rest)) != NULL;) {
        char *normalised = lvp_metric_normalise(part);
        json_t *facts = normalised == NULL ? NULL : facts_in(normalised, vocabulary);
        json_int_t most = 0;
        size_t best = n;
        if (facts == NULL) status = no_memory();
        for (size_t i = 0; i < n; i++) {
            json_int_t same = given[i] ? 0 : shared(json_array_get(answers, i), facts);
            if (same > most) most = same, best = i;
        }
        if (best < n) given[best] = true;
        right += most;
        named += count(facts);
        json_decref(facts);
        free(normalised);
    }
    free(copy);
    free(given);
    *score = named + wanted > 0 ? 2.0 * (double)right / (double)(named + wanted) : 1;
    return status;
}

enum lvp_status lvp_metric_score(enum lvp_metric metric, const char *text, const json_t *answers,
                                 const json_t *vocabulary, double *score)
{
    switch (metric) {
    case LVP_METRIC_PARTS:
        return score_parts(text, answers, score);
    case LVP_METRIC_FACTS:
        return score_facts(text, answers, vocabulary, score);
    default:
        return score_equal(metric == LVP_METRIC_SOFT, text, answers, score);
    }
}
