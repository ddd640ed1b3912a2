// Checks objects of custom resources: their values by the schemas of @kubernetes-models, and their field names by the
// TypeScript types, since a misspelt field passes a schema and a cluster drops it without a word.
// In: a JSON array of objects on standard input. Out: a JSON array of [index of the object, what is wrong].
// Run it in a folder whose node_modules has the packages.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { pathToFileURL } from "node:url";

const PACKAGES = {
  "gateway.networking.k8s.io": "@kubernetes-models/gateway-api",
  "keda.sh": "@kubernetes-models/keda",
  "monitoring.coreos.com": "@kubernetes-models/prometheus-operator",
};

const require = createRequire(path.resolve("package.json"));
const ts = require("typescript");

const modelOf = ({ apiVersion, kind }) => `${PACKAGES[apiVersion.split("/")[0]]}/${apiVersion}/${kind}`;

async function checkValues(object, index) {
  const file = path.resolve("node_modules", `${modelOf(object)}.js`);
  const { [object.kind]: Model } = await import(pathToFileURL(file));
  try {
    new Model(object).validate();
    return [];
  } catch (error) {
    return [[index, error.message]];
  }
}

function checkFields(objects) {
  const lines = objects.map(
    (object, index) =>
      `import { I${object.kind} as T${index} } from "${modelOf(object)}"; export const o${index}: T${index} = ` +
      JSON.stringify(object),
  );
  const file = path.resolve("objects.ts");
  const options = {
    lib: ["lib.es2022.d.ts", "lib.dom.d.ts"],
    module: ts.ModuleKind.NodeNext,
    moduleResolution: ts.ModuleResolutionKind.NodeNext,
    noEmit: true,
    skipLibCheck: true,
    strict: true,
    target: ts.ScriptTarget.ES2022,
    types: [],
  };
  const host = ts.createCompilerHost(options);
  const { fileExists, getSourceFile, readFile } = host;
  const text = lines.join("\n");
  host.fileExists = (name) => name === file || fileExists(name);
  host.readFile = (name) => (name === file ? text : readFile(name));
  host.getSourceFile = (name, version, ...rest) =>
    name === file ? ts.createSourceFile(name, text, version) : getSourceFile(name, version, ...rest);
  const program = ts.createProgram([file], options, host);
  return ts.getPreEmitDiagnostics(program).map((one) => {
    const { line } = one.file?.getLineAndCharacterOfPosition(one.start) ?? { line: -1 };
    return [line, ts.flattenDiagnosticMessageText(one.messageText, "\n")];
  });
}

const objects = JSON.parse(readFileSync(0, "utf-8"));
const values = await Promise.all(objects.map(checkValues));
console.log(JSON.stringify([...values.flat(), ...checkFields(objects)]));
