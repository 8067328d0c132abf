// The safetensors reader on good files, and on each way a file can be wrong.
#include "common/safetensors.h"
#include "tests/unit/small_model.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

// Parses header text + n_data bytes of data.
static enum lvp_status parse(const char *header, size_t n_data, struct lvp_safetensors **file, unsigned char **bytes)
{
    uint64_t length = strlen(header);
    *bytes = calloc(1, 8 + (size_t)length + n_data + 1);
    memcpy(*bytes, &length, 8);
    memcpy(*bytes + 8, header, (size_t)length);
    lvp_error_clear();
    return lvp_safetensors_parse("t.safetensors", *bytes, 8 + (size_t)length + n_data, file);
}

static void reads_tensors_and_metadata(void **state)
{
    (void)state;
    struct tensor_file builder;
    tensor_file_begin(&builder);
    tensor_file_add(&builder, "b", "BF16", 2, 3, 2, -1);
    tensor_file_add(&builder, "a", "F32", 4, 5, -1);
    tensor_file_add(&builder, "empty", "F16", 2, 0, 7, -1);
    tensor_file_add(&builder, "ids", "I64", 8, 1, -1);
    tensor_file_add(&builder, "scalar", "F32", 4, -1);
    tensor_file_add(&builder, "tiny", "F8_E4M3", 1, 3, -1);
    tensor_file_metadata(&builder, "format", "pt");
    size_t n_bytes;
    unsigned char *bytes = tensor_file_end(&builder, &n_bytes);

    struct lvp_safetensors *file;
    assert_int_equal(lvp_safetensors_parse("x", bytes, n_bytes, &file), LVP_OK);
    assert_int_equal(lvp_safetensors_count(file), 6);
    assert_string_equal(lvp_safetensors_at(file, 0)->name, "a");
    assert_string_equal(lvp_safetensors_metadata(file, "format"), "pt");
    assert_null(lvp_safetensors_metadata(file, "none"));
    assert_null(lvp_safetensors_find(file, "none"));
    const struct lvp_tensor_view *b = lvp_safetensors_find(file, "b");
    assert_int_equal(b->dtype, LVP_BF16);
    assert_int_equal(b->n_dims, 2);
    assert_int_equal(b->shape[0], 3);
    assert_int_equal(b->n_bytes, 12);
    assert_int_equal(((const unsigned char *)b->data)[11], 11);
    assert_int_equal(lvp_safetensors_find(file, "scalar")->n_dims, 0);
    assert_int_equal(lvp_safetensors_find(file, "empty")->n_bytes, 0);
    assert_int_equal(lvp_safetensors_find(file, "ids")->dtype, LVP_DTYPE_OTHER);
    assert_string_equal(lvp_safetensors_find(file, "tiny")->dtype_name, "F8_E4M3");
    lvp_safetensors_drop_pages(b); // memory of ours: its content must stay
    assert_int_equal(((const unsigned char *)b->data)[11], 11);
    lvp_safetensors_close(file);
    free(bytes);
}

static void refuses_wrong_headers(void **state)
{
    (void)state;
    static const struct {
        const char *header;
        size_t n_data;
        const char *says;
    } cases[] = {
        {"{", 0, "header"},
        {"[]", 0, "not a JSON object"},
        {"{\"a\":1}", 0, "data_offsets"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}", 4, "data_offsets"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,\"4\"]}}", 4, "data_offsets"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[-4,0]}}", 4, "data_offsets"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]}}", 4, "before its begin"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 7, "truncated"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,8]}}", 8, "do not fit"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", 4, "shape"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":\"x\",\"data_offsets\":[0,4]}}", 4, "no shape"},
        {"{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "no dtype"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,4]}}", 4, "dimensions"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904,4],\"data_offsets\":[0,0]}}", 0,
         "larger than memory"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387905],\"data_offsets\":[0,4]}}", 4, "do not fit"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
         "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[2,6]}}",
         6, "tensor b begins"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
         "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[6,10]}}",
         10, "tensor b begins"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 5, "behind the last"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
         "\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}",
         4, "duplicate"},
        {"{\"__metadata__\":{\"x\":1}}", 0, "not a string"},
        {"{\"__metadata__\":[]}", 0, "not an object"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct lvp_safetensors *file;
        unsigned char *bytes;
        assert_int_equal(parse(cases[i].header, cases[i].n_data, &file, &bytes), LVP_ERR_MODEL);
        assert_null(file);
        assert_non_null(strstr(lvp_error_text(), "t.safetensors"));
        if (strstr(lvp_error_text(), cases[i].says) == NULL) fail_msg("%s: %s", cases[i].header, lvp_error_text());
        free(bytes);
    }
    lvp_error_clear();
}

static void refuses_wrong_lengths(void **state)
{
    (void)state;
    struct lvp_safetensors *file;
    static const uint64_t lengths[] = {3, 1000, UINT64_MAX, 100000001, (uint64_t)1 << 63};
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        unsigned char bytes[10] = {0};
        memcpy(bytes, &lengths[i], 8);
        lvp_error_clear();
        assert_int_equal(lvp_safetensors_parse("t", bytes, sizeof bytes, &file), LVP_ERR_MODEL);
    }
    lvp_error_clear();
    assert_int_equal(lvp_safetensors_parse("t", "1234567", 7, &file), LVP_ERR_MODEL);
    lvp_error_clear();
}

// Every proper prefix of a good file is refused at open, so that no later read can run off the mapping.
static void refuses_every_truncation(void **state)
{
    (void)state;
    char dir[64];
    char path[128];
    make_temp_dir(dir);
    (void)snprintf(path, sizeof path, "%s/t.safetensors", dir);
    struct tensor_file builder;
    tensor_file_begin(&builder);
    tensor_file_add(&builder, "a", "F32", 4, 5, -1);
    size_t n_bytes;
    unsigned char *bytes = tensor_file_end(&builder, &n_bytes);
    struct lvp_safetensors *file;
    for (size_t n = 0; n < n_bytes; n++) {
        write_bytes(dir, "t.safetensors", bytes, n);
        lvp_error_clear();
        assert_int_equal(lvp_safetensors_open(path, &file), LVP_ERR_MODEL);
    }
    write_bytes(dir, "t.safetensors", bytes, n_bytes);
    lvp_error_clear();
    assert_int_equal(lvp_safetensors_open(path, &file), LVP_OK);
    const struct lvp_tensor_view *a = lvp_safetensors_find(file, "a");
    lvp_safetensors_drop_pages(a);
    assert_int_equal(((const unsigned char *)a->data)[19], 19);
    lvp_safetensors_close(file);
    free(bytes);

    assert_int_equal(lvp_safetensors_open(dir, &file), LVP_ERR_MODEL);
    lvp_error_clear();
    assert_int_equal(unlink(path), 0);
    assert_int_equal(lvp_safetensors_open(path, &file), LVP_ERR_MODEL);
    lvp_error_clear();
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(lvp_safetensors_open(path, &file), LVP_ERR_MODEL); // and does not wait for a writer
    lvp_error_clear();
    remove_temp_dir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_tensors_and_metadata),
        cmocka_unit_test(refuses_wrong_headers),
        cmocka_unit_test(refuses_wrong_lengths),
        cmocka_unit_test(refuses_every_truncation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
