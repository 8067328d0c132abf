// Instructions that C++ has no words for. tests/cudahost/kernel.h has their twins for the host.
#ifndef LVP_WORKER_CUDA_PTX_H
#define LVP_WORKER_CUDA_PTX_H

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <stdint.h>

// d [16, 8] += a [16, 16] b [16, 8] by the warp (PTX ISA, mma.m16n8k16). With g = lane / 4 and t = lane % 4 a lane
// holds
//   a: rows g, g + 8, g, g + 8 of columns 2t, 2t + 1 (two registers), then the same rows of columns 2t + 8, 2t + 9
//   b: rows 2t, 2t + 1, then 2t + 8, 2t + 9, of column g
//   d: row g, columns 2t, 2t + 1; row g + 8, the same columns
template <class T> __device__ inline void lvp_mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

template <>
__device__ inline void lvp_mma<__nv_bfloat16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <> __device__ inline void lvp_mma<__half>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four 8 x 8 matrices of 16-bit elements from shared memory (PTX ISA, ldmatrix): lane l gives the address of row l % 8
// of matrix l / 8, 16-byte aligned; of matrix m, a lane gets columns 2t, 2t + 1 of row g, or transposed: rows 2t, 2t +
// 1 of column g.
template <bool TRANSPOSED> __device__ inline void lvp_load_matrices(uint32_t (&r)[4], const void *row)
{
    uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    if (TRANSPOSED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(address)
                     : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(address)
                     : "memory");
}

// Copies 16 bytes from global to shared memory behind the thread's back (PTX ISA, cp.async); both are 16-byte aligned.
__device__ inline void lvp_copy_async(void *shared, const void *global)
{
    uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(global) : "memory");
}

// Ends a group of copies of this thread.
__device__ inline void lvp_copy_commit()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until all but the last GROUPS groups of this thread are there.
template <int GROUPS> __device__ inline void lvp_copy_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory");
}

#endif
