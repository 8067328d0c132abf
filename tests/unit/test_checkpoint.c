// Whole folders: the key layouts in use, shards, and what is refused.
#include "common/checkpoint.h"
#include "tests/unit/small_model.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

static const struct small_layout layouts[] = {
    {"vision_tower.vision_model.", "multi_modal_projector.", "language_model.model.", "language_model."},
    {"model.vision_tower.vision_model.", "model.multi_modal_projector.", "model.language_model.", ""},
    {"vision_tower.", "multi_modal_projector.", "language_model.model.", "language_model."},
    {"model.vision_tower.", "model.multi_modal_projector.", "model.language_model.", NULL},
};

static void write_model(const char *dir, const struct small_layout *layout)
{
    struct tensor_file file;
    small_model_tensors(&file, layout);
    tensor_file_write(&file, dir, "model.safetensors");
}

static struct lvp_checkpoint *open_folder(const char *dir)
{
    struct lvp_checkpoint *checkpoint;
    lvp_error_clear();
    if (lvp_checkpoint_open(dir, &checkpoint) != LVP_OK) fail_msg("%s", lvp_error_text());
    return checkpoint;
}

static void expect_fault(const char *dir, const char *says)
{
    struct lvp_checkpoint *checkpoint;
    lvp_error_clear();
    assert_int_equal(lvp_checkpoint_open(dir, &checkpoint), LVP_ERR_MODEL);
    assert_null(checkpoint);
    if (strstr(lvp_error_text(), says) == NULL) fail_msg("'%s' not in '%s'", says, lvp_error_text());
    lvp_error_clear();
}

static void every_layout(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof layouts / sizeof layouts[0]; i++) {
        char dir[64];
        make_temp_dir(dir);
        small_model_json(dir);
        write_model(dir, &layouts[i]);
        struct lvp_checkpoint *checkpoint = open_folder(dir);
        assert_int_equal(lvp_checkpoint_config(checkpoint)->text.hidden, 12);
        const struct lvp_tensor_view *view = lvp_checkpoint_weight(checkpoint, LVP_W_K, 1);
        assert_non_null(strstr(view->name, "layers.1.self_attn.k_proj.weight"));
        assert_int_equal(view->shape[0], 4);
        assert_non_null(lvp_checkpoint_weight(checkpoint, LVP_W_VIT_FC2_B, 1));
        assert_null(lvp_checkpoint_weight(checkpoint, LVP_W_VIT_FC2_B, 2)); // -2 of 3 layers: two run
        assert_null(lvp_checkpoint_weight(checkpoint, LVP_W_Q_B, 0));
        assert_non_null(lvp_checkpoint_weight(checkpoint, LVP_W_FINAL_NORM, 77));
        const struct lvp_tensor_view *head = lvp_checkpoint_weight(checkpoint, LVP_W_LM_HEAD, 0);
        assert_non_null(strstr(head->name, layouts[i].head != NULL ? "lm_head" : "embed_tokens"));
        lvp_checkpoint_close(checkpoint);
        remove_temp_dir(dir);
    }
}

static void write_shards(const char *dir, const char *extra_entry)
{
    const struct small_layout *layout = &layouts[0];
    struct tensor_file a;
    struct tensor_file b;
    tensor_file_begin(&a);
    tensor_file_begin(&b);
    small_model_vit(&a, layout->vit);
    small_model_text(&b, layout->text);
    small_model_rest(&b, layout);
    json_t *map = json_object();
    const char *key;
    json_t *value;
    json_object_foreach(a.header, key, value) json_object_set_new(map, key, json_string("model-1-of-2.safetensors"));
    json_object_foreach(b.header, key, value) json_object_set_new(map, key, json_string("model-2-of-2.safetensors"));
    if (extra_entry != NULL) json_object_set_new(map, "extra", json_string(extra_entry));
    json_t *index = json_pack("{s:{s:i}, s:o}", "metadata", "total_size", 1, "weight_map", map);
    char *text = json_dumps(index, 0);
    write_text(dir, "model.safetensors.index.json", text);
    free(text);
    json_decref(index);
    tensor_file_write(&a, dir, "model-1-of-2.safetensors");
    tensor_file_write(&b, dir, "model-2-of-2.safetensors");
}

static void shards(void **state)
{
    (void)state;
    char dir[64];
    char path[128];
    make_temp_dir(dir);
    small_model_json(dir);
    expect_fault(dir, "no weights");
    write_shards(dir, NULL);
    struct lvp_checkpoint *checkpoint = open_folder(dir);
    assert_non_null(lvp_checkpoint_weight(checkpoint, LVP_W_VIT_CLASS, 0));
    assert_non_null(lvp_checkpoint_weight(checkpoint, LVP_W_DOWN, 1));
    lvp_checkpoint_close(checkpoint);

    write_shards(dir, "model-1-of-2.safetensors");
    expect_fault(dir, "no tensor extra");
    write_shards(dir, "../elsewhere.safetensors");
    expect_fault(dir, "not a file name");
    write_shards(dir, "missing.safetensors");
    expect_fault(dir, "missing.safetensors");
    write_text(dir, "model.safetensors.index.json", "{\"weight_map\":3}");
    expect_fault(dir, "weight_map is not an object");

    write_shards(dir, NULL);
    (void)snprintf(path, sizeof path, "%s/model-2-of-2.safetensors", dir);
    assert_int_equal(truncate(path, 4000), 0);
    expect_fault(dir, "truncated");
    remove_temp_dir(dir);
}

// Replaces one tensor of a good model and expects the fault to say so.
static void expect_bad_tensor(const char *name, const char *dtype, size_t element, int rows, int columns,
                              const char *says)
{
    char dir[64];
    make_temp_dir(dir);
    small_model_json(dir);
    struct tensor_file good;
    small_model_tensors(&good, &layouts[0]);
    // The bytes stay; the header calls them something else, and the replacement goes behind them.
    json_t *entry = json_incref(json_object_get(good.header, name));
    json_object_del(good.header, name);
    json_object_set_new(good.header, "renamed", entry);
    if (dtype != NULL) tensor_file_add(&good, name, dtype, element, rows, columns, -1);
    tensor_file_write(&good, dir, "model.safetensors");
    expect_fault(dir, says);
    remove_temp_dir(dir);
}

static void wrong_tensors(void **state)
{
    (void)state;
    const char *q = "language_model.model.layers.1.self_attn.q_proj.weight";
    expect_bad_tensor(q, NULL, 0, 0, 0, q);
    expect_bad_tensor(q, "BF16", 2, 12, 11, "has shape [12, 11], the configuration asks for [12, 12]");
    expect_bad_tensor(q, "I16", 2, 12, 12, "has dtype I16");
    expect_bad_tensor("multi_modal_projector.linear_1.bias", NULL, 0, 0, 0, "linear_1.bias");
    expect_bad_tensor("multi_modal_projector.linear_1.weight", NULL, 0, 0, 0, "none of the names");
    expect_bad_tensor("vision_tower.vision_model.pre_layrnorm.bias", "BF16", 2, 1, 8,
                      "pre_layrnorm.bias has shape [1, 8]");
}

static void hash_tells_folders_apart(void **state)
{
    (void)state;
    char dir[64];
    char first[33];
    char again[33];
    make_temp_dir(dir);
    small_model_json(dir);
    write_model(dir, &layouts[0]);
    struct lvp_checkpoint *checkpoint = open_folder(dir);
    assert_int_equal(lvp_checkpoint_hash(checkpoint, first), LVP_OK);
    assert_int_equal(lvp_checkpoint_hash(checkpoint, again), LVP_OK);
    assert_int_equal(strlen(first), 32);
    assert_string_equal(first, again);
    write_text(dir, "tokenizer_config.json", "");
    assert_int_equal(lvp_checkpoint_hash(checkpoint, again), LVP_OK);
    assert_string_not_equal(first, again);
    lvp_checkpoint_close(checkpoint);
    remove_temp_dir(dir);
}

static void pruner_file(struct tensor_file *file, int inner, const char *after, const char *heads, const char *width)
{
    tensor_file_begin(file);
    for (int point = 0; point < 2; point++) {
        char key[128];
        for (int b = 0; b < 2; b++) {
            (void)snprintf(key, sizeof key, "modules.%d.blocks.%d.", point, b);
            add_linear(file, key, "q_proj", inner, b == 0 ? 12 : inner, false);
            add_linear(file, key, "k_proj", inner, 12, false);
            add_linear(file, key, "v_proj", inner, 12, false);
            add_linear(file, key, "o_proj", inner, inner, false);
            add_linear(file, key, "norm1", inner, 0, true);
            add_linear(file, key, "norm2", inner, 0, true);
            add_linear(file, key, "fc1", 2 * inner, inner, true);
            add_linear(file, key, "fc2", inner, 2 * inner, true);
        }
        (void)snprintf(key, sizeof key, "modules.%d.", point);
        add_linear(file, key, "gate", 2, inner, false);
    }
    tensor_file_metadata(file, "format", "pt");
    tensor_file_metadata(file, "lvpruning.version", "1");
    if (after != NULL) tensor_file_metadata(file, "lvpruning.after_layers", after);
    tensor_file_metadata(file, "lvpruning.heads", heads);
    tensor_file_metadata(file, "lvpruning.inner_width", width);
}

static void pruner_weights(void **state)
{
    (void)state;
    static const struct {
        const char *after, *heads, *width, *says; // says NULL: good
    } cases[] = {
        {"1,2", "2", "6", NULL},           {"2,1", "2", "6", "strictly"},
        {"1,1", "2", "6", "strictly"},     {"0,1", "2", "6", "outside"},
        {"1,3", "2", "6", "outside"},      {"1,", "2", "6", "not a list"},
        {"", "2", "6", "not a list"},      {"1 ,2", "2", "6", "not a list"},
        {NULL, "2", "6", "after_layers"},  {"1,2", "4", "6", "multiple"},
        {"1,2", "0", "6", "outside"},      {"1,2", "2", "8", "shape"},
        {"1,2", "2,2", "6", "not a list"}, {"1,2", "2", "99999999999", "not a list"},
    };
    char dir[64];
    char path[128];
    make_temp_dir(dir);
    small_model_json(dir);
    (void)snprintf(path, sizeof path, "%s/lvpruning.safetensors", dir);
    struct lvp_model_config config;
    assert_int_equal(lvp_model_config_load(dir, &config), LVP_OK);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct tensor_file file;
        pruner_file(&file, 6, cases[i].after, cases[i].heads, cases[i].width);
        tensor_file_write(&file, dir, "lvpruning.safetensors");
        struct lvp_pruner_weights weights;
        lvp_error_clear();
        enum lvp_status status = lvp_pruner_weights_open(path, &config, &weights);
        if (cases[i].says == NULL) {
            assert_int_equal(status, LVP_OK);
            assert_int_equal(weights.n_points, 2);
            assert_int_equal(weights.after_layers[1], 2);
            assert_int_equal(weights.heads, 2);
            assert_int_equal(weights.blocks[0][0].q->shape[1], 12);
            assert_int_equal(weights.blocks[1][1].q->shape[1], 6);
            assert_string_equal(weights.blocks[1][1].fc2_b->name, "modules.1.blocks.1.fc2.bias");
            assert_int_equal(weights.gate[1]->shape[0], 2);
            assert_int_equal(strlen(weights.hash), 32);
        } else {
            assert_int_equal(status, LVP_ERR_MODEL);
            if (strstr(lvp_error_text(), cases[i].says) == NULL) fail_msg("%zu: %s", i, lvp_error_text());
        }
        lvp_pruner_weights_close(&weights);
    }
    lvp_error_clear();
    remove_temp_dir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_layout),   cmocka_unit_test(shards),
        cmocka_unit_test(wrong_tensors),  cmocka_unit_test(hash_tells_folders_apart),
        cmocka_unit_test(pruner_weights),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
