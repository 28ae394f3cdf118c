// The launcher that all weight families share: checks, then one launch for the projections of each format.
//
// A Family says
//
//     Args, Weight                            the structs of the C interface
//     format                                  the field of a projection that says its format
//     call(args)                              what all projections share; `count` stays 0
//     matrix(args, i)                         projection i; its weight may not have been checked yet
//     check(weight, i)                        refuses a format, or a shape that the format does not have
//     same(a, b)                              whether one launch may serve both
//     launch(weight, problem, shape, stream)  the launch for weights of that format
#pragma once

#include <cstdio>

#include "gemm/problem.h"

namespace exl {
namespace gemm {

// "projections[2].output.out"; without a projection the field alone.
struct Name {
    char text[64];
    Name(int projection, const char* field) {
        if (projection < 0)
            std::snprintf(text, sizeof text, "%s", field);
        else
            std::snprintf(text, sizeof text, "projections[%d].%s", projection, field);
    }
    operator const char*() const { return text; }
};

// Projections of one format, in the order of the arguments.
struct Batch {
    Call call;
    int first;  // projection
    Matrix matrices[exl_max_projections];
    Problem problem;
    Shape shape;
};

template <class Family> struct Launcher {
    using Args = typename Family::Args;

    // f(batch) for the batches of checked arguments, planned but not bound.
    template <class F> static exl_status for_each_batch(const Args& args, F f) {
        bool taken[exl_max_projections] = {};
        for (int first = 0; first < args.num_projections; first++) {
            if (taken[first]) continue;
            Batch batch = {Family::call(args), first, {}, {}, {}};
            for (int i = first; i < args.num_projections; i++) {
                if (!Family::same(args.projections[i].weight, args.projections[first].weight)) continue;
                taken[i] = true;
                batch.matrices[batch.call.count++] = Family::matrix(args, i);
            }
            batch.shape = plan(batch.call, batch.matrices, batch.problem);
            EXL_TRY(f(batch));
        }
        return exl_ok;
    }

    // All projections together: names in messages count as in the arguments.
    static exl_status check(const Args& args, Call& call, Matrix (&matrices)[exl_max_projections]) {
        call = Family::call(args);
        call.count = args.num_projections;
        for (int i = 0; i < call.count && i < exl_max_projections; i++) matrices[i] = Family::matrix(args, i);
        EXL_TRY(check_sizes(call, matrices));
        for (int i = 0; i < call.count; i++) {
            const auto& weight = args.projections[i].weight;
            EXL_TRY(Family::check(weight, i));
            EXL_REQUIRE(call.activation == exl_no_activation || Family::same(weight, args.projections[0].weight),
                        exl_bad_dtype, Name(i, Family::format),
                        "found another format than in the first projection, expected one for both");
        }
        return exl_ok;
    }

    static exl_status workspace(const Args* args, int64_t* partial_bytes, int64_t* num_tickets) {
        EXL_REQUIRE(args && partial_bytes && num_tickets, exl_bad_argument, "args", "found a null pointer");
        Call call;
        Matrix matrices[exl_max_projections];
        EXL_TRY(check(*args, call, matrices));
        *partial_bytes = *num_tickets = 0;
        return for_each_batch(*args, [&](const Batch& batch) {
            if (batch.shape.partial_bytes > *partial_bytes) *partial_bytes = batch.shape.partial_bytes;
            if (batch.shape.num_tickets > *num_tickets) *num_tickets = batch.shape.num_tickets;
            return exl_ok;
        });
    }

    static exl_status linear(const Args* args, exl_stream stream) {
        EXL_REQUIRE(args, exl_bad_argument, "args", "found a null pointer");
        Call call;
        Matrix matrices[exl_max_projections];
        EXL_TRY(check(*args, call, matrices));
        Shape all = {};
        EXL_TRY(workspace(args, &all.partial_bytes, &all.num_tickets));
        EXL_TRY(check_memory(call, matrices, all));
        return for_each_batch(*args, [&](Batch& batch) {
            bind(batch.call, batch.matrices, batch.problem);
            return Family::launch(args->projections[batch.first].weight, batch.problem, batch.shape, stream);
        });
    }
};

}  // namespace gemm
}  // namespace exl
