// config.json and its companions: transformers' defaults, old and new field names, and faults that name the field.
#include "common/model_config.h"
#include "tests/unit/small_model.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

static const char image_336[] = "{\"crop_size\":{\"height\":336,\"width\":336},\"size\":{\"shortest_edge\":336}}";

static struct lvp_model_config parse(const char *config, const char *image, const char *generation)
{
    struct lvp_model_config result;
    lvp_error_clear();
    if (lvp_model_config_parse(config, image, generation, &result) != LVP_OK) fail_msg("%s", lvp_error_text());
    return result;
}

// config.json as llava-hf/llava-1.5-7b-hf publishes it, shortened to the fields that matter.
static void llava_15(void **state)
{
    (void)state;
    struct lvp_model_config config = parse(
        "{\"architectures\":[\"LlavaForConditionalGeneration\"],\"ignore_index\":-100,\"image_token_index\":32000,"
        "\"model_type\":\"llava\",\"pad_token_id\":32001,\"projector_hidden_act\":\"gelu\","
        "\"text_config\":{\"_name_or_path\":\"lmsys/vicuna-7b-v1.5\",\"architectures\":[\"LlamaForCausalLM\"],"
        "\"max_position_embeddings\":4096,\"model_type\":\"llama\",\"rms_norm_eps\":1e-05,\"torch_dtype\":\"float16\","
        "\"vocab_size\":32064},\"tie_word_embeddings\":false,\"torch_dtype\":\"float16\","
        "\"vision_config\":{\"hidden_size\":1024,\"image_size\":336,\"intermediate_size\":4096,"
        "\"model_type\":\"clip_vision_model\",\"num_attention_heads\":16,\"num_hidden_layers\":24,\"patch_size\":14,"
        "\"projection_dim\":768,\"vocab_size\":32000},\"vision_feature_layer\":-2,"
        "\"vision_feature_select_strategy\":\"default\",\"vocab_size\":32064}",
        "{\"crop_size\":{\"height\":336,\"width\":336},\"do_center_crop\":true,\"do_normalize\":true,\"do_resize\":"
        "true,"
        "\"image_mean\":[0.48145466,0.4578275,0.40821073],\"image_processor_type\":\"CLIPImageProcessor\","
        "\"image_std\":[0.26862954,0.26130258,0.27577711],\"resample\":3,\"rescale_factor\":0.00392156862745098,"
        "\"size\":{\"shortest_edge\":336}}",
        "{\"bos_token_id\":1,\"eos_token_id\":2,\"pad_token_id\":32001}");
    assert_int_equal(config.text.vocab, 32064);
    assert_int_equal(config.text.hidden, 4096);
    assert_int_equal(config.text.layers, 32);
    assert_int_equal(config.text.heads, 32);
    assert_int_equal(config.text.kv_heads, 32);
    assert_int_equal(config.text.head_dim, 128);
    assert_int_equal(config.text.mlp, 11008);
    assert_int_equal(config.text.max_positions, 4096);
    assert_true(config.text.norm_eps == 1e-5F);
    assert_true(config.text.rope_theta == 10000.0F && config.text.rope_factor == 1.0F);
    assert_int_equal(config.text.activation, LVP_ACT_SILU);
    assert_int_equal(config.vision.activation, LVP_ACT_QUICK_GELU);
    assert_int_equal(config.projector_activation, LVP_ACT_GELU);
    assert_true(config.projector_bias && !config.text.attention_bias && !config.text.mlp_bias &&
                !config.text.tied_embeddings);
    assert_int_equal(lvp_vit_layers_used(&config), 23);
    assert_int_equal(lvp_patch_count(&config), 576);
    assert_int_equal(lvp_vision_tokens(&config), 576);
    assert_int_equal(lvp_feature_width(&config), 1024);
    assert_int_equal(config.dtype, LVP_F16);
    assert_int_equal(config.eos_ids[0], 2);
    assert_int_equal(config.image_token_id, 32000);
    assert_true(config.image.rescale_factor == 1.0 / 255.0);
    assert_int_equal(config.image.shortest_edge, 336);
}

static void defaults(void **state)
{
    (void)state;
    struct lvp_model_config config = parse("{\"model_type\":\"llava\"}", image_336, NULL);
    assert_int_equal(config.vision.hidden, 1024);
    assert_int_equal(config.vision.image_size, 336);
    assert_int_equal(config.text.vocab, 32000);
    assert_int_equal(config.text.max_positions, 2048);
    assert_true(config.text.norm_eps == 1e-6F);
    assert_int_equal(config.dtype, LVP_F32);
    assert_int_equal(config.bos_id, 1);
    assert_int_equal(config.n_eos, 1);
    assert_int_equal(config.eos_ids[0], 2);
    assert_true(config.image.mean[1] == 0.4578275F && config.image.std[2] == 0.27577711F);
    assert_int_equal(config.image.resample, LVP_RESAMPLE_BICUBIC);

    // A vision_config that is there but empty has CLIPVisionConfig's defaults, not LLaVA's.
    config = parse("{\"model_type\":\"llava\",\"vision_config\":{}}", "{}", NULL);
    assert_int_equal(config.vision.hidden, 768);
    assert_int_equal(config.vision.image_size, 224);
    assert_int_equal(config.vision.patch_size, 32);
    assert_int_equal(config.image.crop_height, 224);
}

static void other_spellings(void **state)
{
    (void)state;
    struct lvp_model_config config = parse(
        "{\"model_type\":\"llava\",\"dtype\":\"torch.bfloat16\",\"image_token_id\":7,\"vision_feature_layer\":[-2,-5,0]"
        ","
        "\"vision_feature_select_strategy\":\"full\",\"text_config\":{\"rope_parameters\":{\"rope_type\":\"linear\","
        "\"factor\":4,\"rope_theta\":5000.0},\"head_dim\":64,\"num_key_value_heads\":null,\"tie_word_embeddings\":true,"
        "\"eos_token_id\":[5,6],\"bos_token_id\":9}}",
        "{\"image_processor\":{\"image_processor_type\":\"LlavaImageProcessorFast\",\"size\":{\"height\":336,"
        "\"width\":336},\"do_center_crop\":false,\"do_pad\":true,\"image_mean\":0.5,\"resample\":2}}",
        "{\"eos_token_id\":null}");
    assert_int_equal(config.dtype, LVP_BF16);
    assert_int_equal(config.image_token_id, 7);
    assert_int_equal(config.n_feature_layers, 3);
    assert_int_equal(config.feature_layers[0], 23);
    assert_int_equal(config.feature_layers[1], 20);
    assert_int_equal(config.feature_layers[2], 0);
    assert_int_equal(lvp_vit_layers_used(&config), 23);
    assert_int_equal(lvp_feature_width(&config), 3072);
    assert_int_equal(lvp_vision_tokens(&config), 577);
    assert_true(config.text.rope_theta == 5000.0F && config.text.rope_factor == 4.0F);
    assert_int_equal(config.text.head_dim, 64);
    assert_int_equal(config.text.kv_heads, 32);
    assert_true(config.text.tied_embeddings);
    assert_int_equal(config.n_eos, 2);
    assert_int_equal(config.eos_ids[1], 6);
    assert_int_equal(config.bos_id, 9);
    assert_true(config.image.do_pad && !config.image.do_center_crop);
    assert_int_equal(config.image.shortest_edge, 0);
    assert_int_equal(config.image.resize_height, 336);
    assert_true(config.image.mean[2] == 0.5F);
    assert_int_equal(config.image.resample, LVP_RESAMPLE_BILINEAR);

    config =
        parse("{\"model_type\":\"llava\",\"text_config\":{\"rope_theta\":100,\"rope_scaling\":{\"type\":\"linear\","
              "\"factor\":2.5},\"eos_token_id\":3}}",
              "{\"size\":400,\"crop_size\":336}", "{\"eos_token_id\":[4,8]}");
    assert_true(config.text.rope_theta == 100.0F && config.text.rope_factor == 2.5F);
    assert_int_equal(config.eos_ids[1], 8);
    assert_int_equal(config.image.shortest_edge, 400);
    assert_int_equal(config.image.crop_width, 336);
}

static void faults_name_the_field(void **state)
{
    (void)state;
    static const struct {
        const char *config, *image, *says;
    } cases[] = {
        {"[]", image_336, "not a JSON object"},
        {"{", image_336, "config.json: line 1"},
        {"{\"model_type\":\"llava\",\"a\":NaN}", image_336, "config.json: line 1"},
        {"{}", image_336, "model_type is missing"},
        {"{\"model_type\":\"llava_next\"}", image_336, "llava_next"},
        {"{\"model_type\":\"llava\",\"text_config\":{\"model_type\":\"qwen2\"}}", image_336, "text_config.model_type"},
        {"{\"model_type\":\"llava\",\"vision_config\":{\"model_type\":\"siglip_vision_model\"}}", image_336, "siglip"},
        {"{\"model_type\":\"llava\",\"text_config\":[]}", image_336, "text_config is not an object"},
        {"{\"model_type\":\"llava\",\"text_config\":{\"hidden_size\":0}}", image_336, "text_config.hidden_size"},
        {"{\"model_type\":\"llava\",\"text_config\":{\"hidden_size\":-1}}", image_336, "text_config.hidden_size"},
        {"{\"model_type\":\"llava\",\"text_config\":{\"hidden_size\":9007199254740993}}", image_336, "hidden_size"},
        {"{\"model_type\":\"llava\",\"text_config\":{\"hidden_size\":4096.5}}", image_336, "not an integer"},
        {"{\"model_type\":\"llava\",\"text_config\":{\"num_hidden_layers\":null}}", image_336, "num_hidden_layers"},
        {"{\"model_type\":\"llava\",\"text_config\":{\"num_attention_heads\":3}}", image_336, "hidden_size 4096"},
        {"{\"model_type\":\"llava\",\"text_config\":{\"num_key_value_heads\":5}}", image_336, "num_key_value_heads"},
        {"{\"model_type\":\"llava\",\"text_config\":{\"head_dim\":63}}", image_336, "head_dim"},
        {"{\"model_type\":\"llava\",\"text_config\":{\"head_dim\":65536}}", image_336, "head_dim"},
        {"{\"model_type\":\"llava\",\"text_config\":{\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":2}}}", image_336,
         "dynamic"},
        {"{\"model_type\":\"llava\",\"text_config\":{\"rope_scaling\":{\"type\":\"linear\"}}}", image_336, "factor"},
        {"{\"model_type\":\"llava\",\"text_config\":{\"rms_norm_eps\":-1}}", image_336, "rms_norm_eps"},
        {"{\"model_type\":\"llava\",\"text_config\":{\"hidden_act\":\"mish\"}}", image_336, "mish"},
        {"{\"model_type\":\"llava\",\"text_config\":{\"eos_token_id\":99999}}", image_336, "eos_token_id"},
        {"{\"model_type\":\"llava\",\"text_config\":{\"eos_token_id\":[]}}", image_336, "eos_token_id"},
        {"{\"model_type\":\"llava\",\"vision_config\":{\"patch_size\":0}}", image_336, "vision_config.patch_size"},
        {"{\"model_type\":\"llava\",\"vision_config\":{\"patch_size\":500}}", image_336, "patch_size 500"},
        {"{\"model_type\":\"llava\",\"vision_config\":{\"image_size\":16384,\"patch_size\":1}}", image_336, "patches"},
        {"{\"model_type\":\"llava\",\"vision_config\":{\"num_channels\":4}}", image_336, "num_channels"},
        {"{\"model_type\":\"llava\",\"vision_feature_layer\":25}", image_336, "vision_feature_layer"},
        {"{\"model_type\":\"llava\",\"vision_feature_layer\":[-26]}", image_336, "vision_feature_layer"},
        {"{\"model_type\":\"llava\",\"vision_feature_layer\":[1,1,1,1,1,1,1,1,1]}", image_336, "9 elements"},
        {"{\"model_type\":\"llava\",\"vision_feature_select_strategy\":\"cls\"}", image_336, "cls"},
        {"{\"model_type\":\"llava\",\"torch_dtype\":\"float64\"}", image_336, "float64"},
        {"{\"model_type\":\"llava\",\"quantization_config\":{}}", image_336, "quantization_config"},
        {"{\"model_type\":\"llava\"}", "{}", "crop_size gives images of 224 x 224"},
        {"{\"model_type\":\"llava\"}", "{\"crop_size\":{\"height\":336}}", "crop_size"},
        {"{\"model_type\":\"llava\"}", "{\"crop_size\":336,\"do_center_crop\":false}", "do_center_crop"},
        {"{\"model_type\":\"llava\"}", "{\"crop_size\":336,\"size\":{\"longest_edge\":3}}", "size"},
        {"{\"model_type\":\"llava\"}", "{\"crop_size\":336,\"image_std\":[1,0,1]}", "image_std[1]"},
        {"{\"model_type\":\"llava\"}", "{\"crop_size\":336,\"image_mean\":[1,0]}", "image_mean"},
        {"{\"model_type\":\"llava\"}", "{\"crop_size\":336,\"resample\":1}", "resample"},
        {"{\"model_type\":\"llava\"}", "{\"crop_size\":336,\"do_resize\":1}", "do_resize"},
        {"{\"model_type\":\"llava\"}", "{\"image_processor_type\":\"LlavaNextImageProcessor\"}", "LlavaNext"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct lvp_model_config config;
        lvp_error_clear();
        assert_int_equal(lvp_model_config_parse(cases[i].config, cases[i].image, NULL, &config), LVP_ERR_MODEL);
        if (strstr(lvp_error_text(), cases[i].says) == NULL) fail_msg("%s: %s", cases[i].config, lvp_error_text());
    }
    lvp_error_clear();
}

static void which_files_are_read(void **state)
{
    (void)state;
    struct lvp_model_config config;
    char dir[64];
    make_temp_dir(dir);
    lvp_error_clear();
    assert_int_equal(lvp_model_config_load(dir, &config), LVP_ERR_MODEL);
    assert_non_null(strstr(lvp_error_text(), "config.json"));

    write_text(dir, "config.json", small_config);
    write_text(dir, "processor_config.json", "{\"patch_size\":14}"); // as older folders have it
    lvp_error_clear();
    assert_int_equal(lvp_model_config_load(dir, &config), LVP_ERR_MODEL);
    assert_non_null(strstr(lvp_error_text(), "preprocessor_config.json"));

    write_text(dir, "processor_config.json", "{\"image_processor\":{\"crop_size\":28,\"resample\":2}}");
    lvp_error_clear();
    assert_int_equal(lvp_model_config_load(dir, &config), LVP_OK);
    assert_int_equal(config.image.resample, LVP_RESAMPLE_BILINEAR);

    write_text(dir, "preprocessor_config.json", small_image_config); // goes first
    write_text(dir, "generation_config.json", "{\"eos_token_id\":[11,12]}");
    assert_int_equal(lvp_model_config_load(dir, &config), LVP_OK);
    assert_int_equal(config.image.resample, LVP_RESAMPLE_BICUBIC);
    assert_int_equal(config.n_eos, 2);
    remove_temp_dir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(llava_15),
        cmocka_unit_test(defaults),
        cmocka_unit_test(other_spellings),
        cmocka_unit_test(faults_name_the_field),
        cmocka_unit_test(which_files_are_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
