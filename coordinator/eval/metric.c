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

static bool is_article(const char *word, size_t n)
{
    static const char *const articles[] = {"a", "an", "the"};
    for (size_t i = 0; i < sizeof articles / sizeof *articles; i++)
        if (strlen(articles[i]) == n && memcmp(articles[i], word, n) == 0) return true;
    return false;
}

// Appends the word as it counts, and a space.
static char *put_word(char *to, const char *word, size_t n)
{
    static const char *const numbers[] = {"zero", "one",   "two",   "three", "four", "five",
                                          "six",  "seven", "eight", "nine",  "ten"};
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

static char *put_words(char *to, const char *text, bool articles)
{
    for (const char *at = text; *at != '\0';) {
        size_t n = strcspn(at, " ");
        if (n > 0 && (articles || !is_article(at, n))) to = put_word(to, at, n);
        at += n > 0 ? n : 1;
    }
    return to;
}

// ASCII in the place of a sign of three bytes: quotes, commas and full stops become plain, and a space stands for other
// punctuation: U+2010 to U+205E, that of Chinese and Japanese, full and half width. '\0' for anything else, a letter.
static char plain_sign(const unsigned char *at)
{
    static const unsigned spaces[][2] = {{0x2010, 0x205E}, {0x3000, 0x3003}, {0x3008, 0x301F}, {0x30FB, 0x30FB},
                                         {0xFF01, 0xFF0F}, {0xFF1A, 0xFF20}, {0xFF3B, 0xFF40}, {0xFF5B, 0xFF65}};
    if ((at[0] & 0xF0) != 0xE0 || at[1] == '\0' || at[2] == '\0') return '\0';
    unsigned code = (at[0] & 0x0Fu) << 12 | (at[1] & 0x3Fu) << 6 | (at[2] & 0x3Fu);
    if (code == 0x2018 || code == 0x2019) return '\'';
    if (code == 0x201C || code == 0x201D) return '"';
    if (code == 0x3001 || code == 0xFF0C) return ',';
    if (code == 0x3002 || code == 0xFF0E) return '.';
    for (size_t i = 0; i < sizeof spaces / sizeof *spaces; i++)
        if (code >= spaces[i][0] && code <= spaces[i][1]) return ' ';
    return '\0';
}

// NULL: no memory.
static char *with_plain_signs(const char *text)
{
    char *copy = strdup(text);
    if (copy == NULL) return NULL;
    char *to = copy;
    for (const char *at = text; *at != '\0';) {
        char sign = plain_sign((const unsigned char *)at);
        *to++ = sign != '\0' ? sign : *at;
        at += sign != '\0' ? 3 : 1;
    }
    *to = '\0';
    return copy;
}

static bool is_letter(char c) // or digit; any beyond ASCII is one
{
    return isalnum((unsigned char)c) || (unsigned char)c >= 0x80;
}

static bool is_inside_number(const char *text, const char *at)
{
    return at > text && isdigit((unsigned char)at[-1]) && isdigit((unsigned char)at[1]);
}

char *lvp_metric_normalise(const char *text)
{
    char *plain = with_plain_signs(text), *lower = plain != NULL ? strdup(plain) : NULL;
    size_t n = plain != NULL ? strlen(plain) : 0;
    char *result = malloc(2 * n + 3), *to = result; // every word with a space behind it
    if (plain == NULL || lower == NULL || result == NULL) {
        free(plain);
        free(lower);
        free(result);
        return NULL;
    }
    for (size_t i = 0; i < n; i++) {
        // A point or comma inside a number stays, and an apostrophe inside a word; other punctuation parts words.
        bool number = (plain[i] == '.' || plain[i] == ',') && is_inside_number(plain, plain + i);
        bool apostrophe = plain[i] == '\'' && i > 0 && is_letter(plain[i - 1]) && is_letter(plain[i + 1]);
        bool word = is_letter(plain[i]) || number || apostrophe;
        lower[i] = word ? (char)tolower((unsigned char)plain[i]) : ' ';
    }
    to = put_words(result, lower, false);
    if (to == result) to = put_words(result, lower, true); // "A" may be the letter of an option
    *(to > result ? to - 1 : to) = '\0';
    free(plain);
    free(lower);
    return result;
}

// 1 where the normalised text equals the answer, 0 where not, -1 without memory. Nothing equals nothing: it says
// nothing.
static int equals(const char *normalised, const json_t *answer)
{
    char *other = lvp_metric_normalise(json_string_value(answer));
    int same = other == NULL ? -1 : other[0] != '\0' && strcmp(normalised, other) == 0;
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
    if (!soft || n < 4) // of three, those left could never reach three
        *score = found > 0;
    else if (found == 0)
        *score = 0;
    else
        *score =
            ((double)found * (without < 1 ? without : 1) + (double)(n - found) * (with < 1 ? with : 1)) / (double)n;
    return LVP_OK;
}

// Cuts the next part or phrase off at "and", a comma or a full stop that is not inside a number; NULL at the end.
// Changes the text.
static char *next_part(char **rest)
{
    char *part = *rest;
    if (part == NULL) return NULL;
    char *stop = strpbrk(part, ",."), *word = strcasestr(part, " and ");
    while (stop != NULL && is_inside_number(part, stop)) stop = strpbrk(stop + 1, ",.");
    bool at_word = word != NULL && (stop == NULL || word < stop);
    char *cut = at_word ? word : stop;
    *rest = cut == NULL ? NULL : cut + (at_word ? 5 : 1);
    if (cut != NULL) *cut = '\0';
    return part;
}

// The next part that says something, normalised and malloc'ed; NULL at the end.
static enum lvp_status next_said(char **rest, char **normalised)
{
    *normalised = NULL;
    for (char *part; (part = next_part(rest)) != NULL;) {
        *normalised = lvp_metric_normalise(part);
        if (*normalised == NULL) return no_memory();
        if ((*normalised)[0] != '\0') break;
        free(*normalised); // ", and" cuts twice
        *normalised = NULL;
    }
    return LVP_OK;
}

static enum lvp_status score_parts(const char *text, const json_t *answers, double *score)
{
    enum lvp_status status = LVP_OK;
    char *copy = with_plain_signs(text), *rest = copy;
    size_t right = 0, n = json_array_size(answers);
    if (copy == NULL) return no_memory();
    for (size_t i = 0; i < n && status == LVP_OK; i++) {
        char *said = NULL;
        status = next_said(&rest, &said);
        int same = said == NULL ? 0 : equals(said, json_array_get(answers, i));
        if (same < 0) status = no_memory();
        right += same > 0;
        free(said);
    }
    free(copy);
    *score = (double)right / (double)n;
    return status;
}

// --- facts

// The facts of the vocabulary that a normalised phrase names, each once, the longest first, as an object {fact: true}.
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
            bool failed = words == NULL || (known && json_object_set_new(facts, words, json_true()) != 0);
            free(words);
            if (failed) return json_decref(facts), NULL;
            if (!known) continue;
            next = end[n - 1];
            break;
        }
        phrase = next + strspn(next, " ");
    }
    return facts;
}

// The facts of a reference object, normalised and each once. NULL: no memory.
static json_t *facts_of(const json_t *answer)
{
    json_t *facts = json_array(), *seen = json_object();
    bool failed = facts == NULL || seen == NULL;
    for (size_t f = 0; f < json_array_size(answer) && !failed; f++) {
        char *fact = lvp_metric_normalise(json_string_value(json_array_get(answer, f)));
        if (fact == NULL)
            failed = true;
        else if (json_object_get(seen, fact) == NULL)
            failed = json_object_set_new(seen, fact, json_true()) != 0 ||
                     json_array_append_new(facts, json_string(fact)) != 0;
        free(fact);
    }
    json_decref(seen);
    if (!failed) return facts;
    json_decref(facts);
    return NULL;
}

static json_t *facts_of_all(const json_t *answers)
{
    json_t *objects = json_array();
    for (size_t i = 0; i < json_array_size(answers); i++) {
        if (json_array_append_new(objects, facts_of(json_array_get(answers, i))) == 0) continue;
        json_decref(objects);
        return NULL;
    }
    return objects;
}

// Facts of a reference object that a phrase names: none where the object itself is not among them.
static json_int_t shared(const json_t *object, const json_t *named)
{
    json_int_t n = 0;
    for (size_t f = 0; f < json_array_size(object); f++) {
        bool there = json_object_get(named, json_string_value(json_array_get(object, f))) != NULL;
        if (f == 0 && !there) return 0;
        n += there;
    }
    return n;
}

// Every phrase is given to the reference object, not yet given, with which it shares most.
static enum lvp_status score_facts(const char *text, const json_t *answers, const json_t *vocabulary, double *score)
{
    size_t n = json_array_size(answers);
    char *copy = with_plain_signs(text), *rest = copy, *said = NULL;
    bool *given = calloc(n, sizeof *given);
    json_t *objects = facts_of_all(answers);
    json_int_t right = 0, named = 0, wanted = 0;
    enum lvp_status status = copy == NULL || given == NULL || objects == NULL ? no_memory() : LVP_OK;
    for (size_t i = 0; i < n; i++) wanted += (json_int_t)json_array_size(json_array_get(objects, i));
    while (status == LVP_OK && (status = next_said(&rest, &said)) == LVP_OK && said != NULL) {
        json_t *facts = facts_in(said, vocabulary);
        json_int_t most = 0;
        size_t best = n;
        if (facts == NULL) status = no_memory();
        for (size_t i = 0; i < n; i++) {
            json_int_t same = given[i] ? 0 : shared(json_array_get(objects, i), facts);
            if (same > most) most = same, best = i;
        }
        if (best < n) given[best] = true;
        right += most;
        named += (json_int_t)json_object_size(facts);
        json_decref(facts);
        free(said);
    }
    free(copy);
    free(given);
    json_decref(objects);
    *score = named + wanted > 0 ? 2.0 * (double)right / (double)(named + wanted) : 1;
    return status;
}

// --- the answers' form

// What keeps a text from ever being met as a part or fact; NULL: nothing.
static enum lvp_status check_part(const char *text, int max_words, const char **fault)
{
    char *copy = with_plain_signs(text), *rest = copy, *said = NULL, *more = NULL;
    enum lvp_status status = copy != NULL ? LVP_OK : no_memory();
    if (status == LVP_OK) status = next_said(&rest, &said);
    if (status == LVP_OK) status = next_said(&rest, &more);
    int words = 1;
    for (const char *at = said; at != NULL && (at = strchr(at, ' ')) != NULL; at++) words++;
    if (said == NULL)
        *fault = "one of them has neither letter nor digit";
    else if (more != NULL)
        *fault = "texts are cut at commas, full stops and \"and\", so that one with those never matches";
    else if (max_words > 0 && words > max_words)
        *fault = "a fact has at most 4 words";
    free(copy);
    free(said);
    free(more);
    return status;
}

// People also answer "?": that matches nothing, but something must be there that can.
static enum lvp_status check_any(const json_t *answers, const char **fault)
{
    bool any = false;
    for (size_t i = 0; i < json_array_size(answers) && !any; i++) {
        char *normalised = lvp_metric_normalise(json_string_value(json_array_get(answers, i)));
        if (normalised == NULL) return no_memory();
        any = normalised[0] != '\0';
        free(normalised);
    }
    if (!any) *fault = "none of them has a letter or digit";
    return LVP_OK;
}

static bool is_list_of_texts(const json_t *list)
{
    for (size_t i = 0; i < json_array_size(list); i++)
        if (!json_is_string(json_array_get(list, i))) return false;
    return json_array_size(list) > 0;
}

enum lvp_status lvp_metric_check(enum lvp_metric metric, const json_t *answers, const char **fault)
{
    *fault = NULL;
    if (metric == LVP_METRIC_FACTS) {
        if (json_array_size(answers) == 0) *fault = "give a list of lists of strings";
        for (size_t i = 0; i < json_array_size(answers) && *fault == NULL; i++) {
            const json_t *object = json_array_get(answers, i);
            if (!is_list_of_texts(object)) *fault = "give a list of lists of strings";
            for (size_t f = 0; f < json_array_size(object) && *fault == NULL; f++)
                LVP_TRY(check_part(json_string_value(json_array_get(object, f)), MAX_WORDS, fault));
        }
        return LVP_OK;
    }
    if (!is_list_of_texts(answers)) return *fault = "give a list of strings", LVP_OK;
    if (metric != LVP_METRIC_PARTS) return check_any(answers, fault);
    for (size_t i = 0; i < json_array_size(answers) && *fault == NULL; i++)
        LVP_TRY(check_part(json_string_value(json_array_get(answers, i)), 0, fault));
    return LVP_OK;
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
