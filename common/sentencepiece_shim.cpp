#include <sentencepiece_processor.h>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <new>
#include <string>
#include <vector>

extern "C" {
#include "common/sentencepiece_shim.h"
}

struct lvp_sentencepiece {
    sentencepiece::SentencePieceProcessor processor;
};

// Runs `body`, which returns an lvp_status, and turns what it throws into one.
template <class Body> static lvp_status guarded(Body body) noexcept
{
    try {
        return body();
    } catch (const std::bad_alloc &) {
        return lvp_fail(LVP_ERR_MEMORY, "sentencepiece: out of memory");
    } catch (const std::exception &error) {
        return lvp_fail(LVP_ERR_MODEL, "sentencepiece: %s", error.what());
    } catch (...) {
        return lvp_fail(LVP_ERR_MODEL, "sentencepiece: unknown exception");
    }
}

extern "C" lvp_status lvp_sentencepiece_open(const char *bytes, size_t n_bytes, bool no_dummy_prefix,
                                             lvp_sentencepiece **model)
{
    *model = nullptr;
    return guarded([&] {
        std::string proto(bytes, n_bytes);
        // Protocol buffers merge a message field that is there twice, so appending normalizer_spec { add_dummy_prefix:
        // false } (fields 3 and 3 of sentencepiece_model.proto) overrides the one setting. The library has no call for
        // it.
        if (no_dummy_prefix) proto.append("\x1a\x02\x18\x00", 4);
        std::unique_ptr<lvp_sentencepiece> loaded(new lvp_sentencepiece);
        const auto result = loaded->processor.LoadFromSerializedProto(proto);
        if (!result.ok()) return lvp_fail(LVP_ERR_MODEL, "tokenizer.model: %s", result.ToString().c_str());
        *model = loaded.release();
        return LVP_OK;
    });
}

extern "C" void lvp_sentencepiece_close(lvp_sentencepiece *model)
{
    delete model;
}

extern "C" lvp_status lvp_sentencepiece_encode(const lvp_sentencepiece *model, const char *text, size_t n_bytes,
                                               lvp_ids *ids)
{
    return guarded([&] {
        std::vector<int> found;
        const auto result = model->processor.Encode({text, n_bytes}, &found);
        if (!result.ok()) return lvp_fail(LVP_ERR_MODEL, "sentencepiece: %s", result.ToString().c_str());
        return lvp_ids_append(ids, found.data(), found.size());
    });
}

extern "C" lvp_status lvp_sentencepiece_decode(const lvp_sentencepiece *model, const char *const *pieces,
                                               size_t n_pieces, lvp_text *text)
{
    return guarded([&] {
        std::string joined;
        const std::vector<std::string> list(pieces, pieces + n_pieces);
        const auto result = model->processor.Decode(list, &joined);
        if (!result.ok()) return lvp_fail(LVP_ERR_MODEL, "sentencepiece: %s", result.ToString().c_str());
        return lvp_text_append(text, joined.data(), joined.size());
    });
}

extern "C" int32_t lvp_sentencepiece_size(const lvp_sentencepiece *model)
{
    return model->processor.GetPieceSize();
}

extern "C" int32_t lvp_sentencepiece_unknown_id(const lvp_sentencepiece *model)
{
    return model->processor.unk_id();
}

extern "C" int32_t lvp_sentencepiece_id(const lvp_sentencepiece *model, const char *piece)
{
    return model->processor.PieceToId(piece);
}

extern "C" const char *lvp_sentencepiece_piece(const lvp_sentencepiece *model, int32_t id)
{
    return id < 0 || id >= model->processor.GetPieceSize() ? nullptr : model->processor.IdToPiece(id).c_str();
}
