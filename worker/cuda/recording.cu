// Steps that repeat as CUDA graphs: launching a decode step's hundreds of kernels one by one takes longer than small
// ones run.
#include "worker/cuda/cuda_backend.h"

namespace
{

// The recording of a key, or the one that makes room for it.
lvp_cuda_recording *find(lvp_cuda *cuda, uint64_t key)
{
    lvp_cuda_recording *oldest = &cuda->recordings[0];
    for (lvp_cuda_recording &recording : cuda->recordings) {
        if (recording.key == key) return &recording;
        if (recording.used < oldest->used) oldest = &recording;
    }
    if (oldest->graph != nullptr) (void)cudaGraphExecDestroy(oldest->graph);
    *oldest = {key, 0, nullptr, 0};
    return oldest;
}

} // namespace

bool lvp_cuda_begin(struct lvp_backend *backend, uint64_t key)
{
    lvp_cuda *cuda = lvp_cuda_of(backend);
    lvp_cuda_recording *recording = find(cuda, key);
    recording->used = ++cuda->uses;
    if (recording->graph != nullptr) {
        lvp_cuda_note(cuda, cudaGraphLaunch(recording->graph, cuda->stream), "a recorded step");
        return false;
    }
    // What runs for the first time may load code and choose algorithms, which a capture does not allow.
    if (recording->met++ == 0) return true;
    cuda->recording = key;
    lvp_cuda_note(cuda, cudaStreamBeginCapture(cuda->stream, cudaStreamCaptureModeThreadLocal), "recording a step");
    return true;
}

void lvp_cuda_end(struct lvp_backend *backend)
{
    lvp_cuda *cuda = lvp_cuda_of(backend);
    cudaGraph_t graph = nullptr;
    if (cuda->recording == 0) return;
    lvp_cuda_recording *recording = find(cuda, cuda->recording);
    cuda->recording = 0;
    lvp_cuda_note(cuda, cudaStreamEndCapture(cuda->stream, &graph), "recording a step");
    if (graph == nullptr) return;
    lvp_cuda_note(cuda, cudaGraphInstantiate(&recording->graph, graph, 0), "recording a step");
    (void)cudaGraphDestroy(graph);
    if (recording->graph != nullptr)
        lvp_cuda_note(cuda, cudaGraphLaunch(recording->graph, cuda->stream), "a recorded step");
}

void lvp_cuda_forget(struct lvp_cuda *cuda)
{
    for (lvp_cuda_recording &recording : cuda->recordings) {
        if (recording.graph != nullptr) (void)cudaGraphExecDestroy(recording.graph);
        recording = {};
    }
}
