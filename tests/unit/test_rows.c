// The bytes of an output row: escapes, lists, numbers.
#include "coordinator/output/rows.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
// cmocka.h needs those above.
#include <cmocka.h>

static void test_row_texts(void **state)
{
    (void)state;
    struct lvp_sample sample = {.n_images = 2, .image_list = true, .images = (char *[]){"a", "b\x01\x7f"}};
    struct lvp_request request = {.sample = sample, .id = "\xc3\xa9\xff/", .prompt = "tab\t"};
    const int vision[] = {4, 2, 4, 2};
    const float logprobs[] = {-1.0F / 3, 0};
    struct lvp_caption caption = {.caption = "a\0b",
                                  .caption_bytes = 3,
                                  .token_ids = (const int32_t[]){5, 6},
                                  .logprobs = logprobs,
                                  .n_tokens = 2,
                                  .vision_tokens = vision,
                                  .n_images = 2,
                                  .n_counts = 2};
    struct lvp_json_text row = {0};
    lvp_caption_row(&request, &caption, &row);
    lvp_json_text_append(&row, "", 1);
    assert_string_equal(
        row.data,
        "{\"id\":\"\xc3\xa9\xef\xbf\xbd/"
        "\",\"image\":[\"a\",\"b\\u0001\x7f\"],\"prompt\":\"tab\\t\",\"caption\":\"a\\u0000b\","
        "\"finish_reason\":\"length\",\"token_ids\":[5,6],\"prompt_tokens\":0,\"vision_tokens\":[[4,2],[4,2]],"
        "\"logprobs\":[-0.333333343,0]}\n");
    lvp_json_text_free(&row);
    struct lvp_request bad = {.id = "line-3", .prompt = ""};
    struct lvp_sample_error error = {.code = LVP_SAMPLE_BAD_MANIFEST_LINE, .message = "x"};
    lvp_error_row(&bad, &error, 1, &row);
    lvp_json_text_append(&row, "", 1);
    assert_string_equal(
        row.data,
        "{\"id\":\"line-3\",\"image\":null,\"error\":\"bad_manifest_line\",\"message\":\"x\",\"attempts\":1}\n");
    lvp_json_text_free(&row);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_row_texts)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
